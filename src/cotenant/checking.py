"""What `cotenant check` looks at: a configuration and everything it names, before a server is started with
it.

Nothing is loaded to be served, but Python sources are run as far as it takes to see what they name, which the
configuration must allow.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from cotenant import zoo
from cotenant.catalogue import OnnxModels, Places
from cotenant.config import ARCHIVE, ConfigError, ModelConfig, Scenario, holds_weights
from cotenant.config_problems import Problem, problem_at, read_all
from cotenant.cores import available_cores
from cotenant.domain import ModelMetadata
from cotenant.execute.onnx_file import parse
from cotenant.labels import labelled
from cotenant.profile.records import cpu_fingerprint
from cotenant.repository import repository_of, stocked
from cotenant.runtimes import cpu_lanes, family
from cotenant.user_models import UserModels

MEMINFO = Path("/proc/meminfo")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
DEFAULT_ROWS = next(entry.default for entry in fields(ModelConfig) if entry.name == "max_batch")
FILE_SUFFIXES = ("_file", "_cert", "_key", "_ca", "_certificate")
"""Ends of keys of `[server]` that name files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the server is to listen; no ports: that is not checked."""

    host: str = "127.0.0.1"
    ports: Sequence[int] = ()


def check(path: Path, where: Places, address: Address) -> tuple[Scenario | None, list[Problem]]:
    """What can be read of a configuration, and every problem with it and what it names. Raises nothing of
    what is expected to be wrong. Blocks for the reading of model files."""
    scenario, problems = read_all(path)
    if scenario is None:
        return None, problems
    text = path.read_text(encoding="utf-8")
    bad = {p.where.rpartition(" ")[0] for p in problems if p.where.endswith((" source", " path"))}
    found = [*_models(scenario, where, bad), *_server(scenario, address), *_store(where)]
    problems += [problem_at(path, text, place, message) for place, message in found]
    return scenario, sorted(problems, key=lambda problem: problem.line or 0)


Found = Iterator[tuple[str, str]]
"""Places in the file and what is wrong there."""


# --- models --------------------------------------------------------------------------------------------


def _models(scenario: Scenario, where: Places, bad: set[str]) -> Found:
    user = UserModels(scenario.folder)
    scenario = user.completed(scenario)
    try:
        torch = family(scenario, user) == "torch"
        if not torch:
            cpu_lanes(scenario)
        elif scenario.device.kind == "twin":
            raise ConfigError("a twin can be simulated, not served", "[device] kind")
    except ConfigError as error:
        yield error.where or "[device] kind", str(error)
        return
    if torch:
        yield from _torch_models(scenario)
        return
    files: list[Path] = []
    device = cpu_fingerprint(cpu_lanes(scenario), len(available_cores()))
    models = OnnxModels(scenario, where, device, user)
    for model in scenario.models:
        place = f"[[model]] {model.name!r}"
        if place in bad:
            continue
        try:
            if model.source.startswith("zoo:") and model.source[4:] not in zoo.NAMES:
                raise ValueError(f"there is no {model.source!r}; known: {', '.join(zoo.NAMES)}")
            metadata, made_of = models.look(model)
        except (ValueError, OSError) as error:
            yield f"{place} source", str(error)
            continue
        if isinstance(made_of, Path):
            files.append(made_of)
        yield from _shapes(place, model, metadata)
        try:
            labelled(metadata, model.labels)
        except ValueError as error:
            yield f"{place} labels", f"{place} {error}"
    if "[repository]" not in bad:
        yield from _repository(scenario, models, files)
    yield from _memory(scenario, _n_sessions(scenario) * sum(map(_n_bytes, files)))
    yield from _traces(scenario)


def _repository(scenario: Scenario, models: OnnxModels, files: list[Path]) -> Found:
    """What is wrong with a repository, and with the models that it has for the start, whose files are added
    to `files`."""
    repository, place = repository_of(scenario), "[repository] path"
    if repository is None:
        return
    try:
        stock = stocked(scenario)
        found = dict(repository.scan())
    except ConfigError as error:
        yield error.where or place, str(error)
        return
    for name, reason in stock.failed.items():
        yield place if name in found else "[repository] load", reason
    for name, model in found.items():
        if isinstance(model, ConfigError) and name not in stock.failed:
            yield place, str(model)
    for table in stock.scenario.models[len(scenario.models) :]:
        try:
            metadata, made_of = models.look(table)
            labelled(metadata, table.labels)
        except (ValueError, OSError) as error:
            yield place, f"{place}: model {table.name!r}: {error}"
            continue
        assert isinstance(made_of, Path)
        files.append(made_of)


def _shapes(place: str, model: ModelConfig, metadata: ModelMetadata) -> Found:
    if model.max_batch > 1 and not metadata.batched and model.max_batch != DEFAULT_ROWS:
        yield f"{place} max_batch", f"{place} max_batch is {model.max_batch}, but the model has no batch axis"


def _torch_models(scenario: Scenario) -> Found:
    try:
        from cotenant.execute.torch.weights import architecture_of
        from cotenant.execute.torch.zoo import SMALL, ZOO
    except ImportError as error:
        yield "", f"torch models need torch ({error}); install cotenant[torch]"
        return
    for model in scenario.models:
        place = f"[[model]] {model.name!r} source"
        in_folder = model.source.endswith(ARCHIVE) or holds_weights(model.source)
        path = scenario.folder / model.source
        if in_folder and not path.is_file():
            yield place, f"{place}: there is no file {path}"
        elif holds_weights(model.source):
            try:
                architecture_of(path, model.architecture)
            except (ValueError, OSError) as error:
                yield place, f"{place}: {error}"
        elif model.source.startswith("torch:"):
            name = model.source.removeprefix("torch:").removesuffix(SMALL)
            if name not in ZOO:
                yield place, f"{place}: there is no torch:{name}; known: {', '.join(ZOO)}"


def _traces(scenario: Scenario) -> Found:
    for model in scenario.models:
        if model.file is not None and not (scenario.folder / model.file).is_file():
            place = f"[[model]] {model.name!r} file"
            yield place, f"{place}: there is no file {scenario.folder / model.file}"


# --- memory --------------------------------------------------------------------------------------------


def _n_sessions(scenario: Scenario) -> int:
    lanes = cpu_lanes(scenario)
    return 1 if all(len(lane.units) == 1 for lane in lanes) else len(lanes)


def _n_bytes(path: Path) -> int:
    """Of a model's file and its external data."""
    locations = {
        entry.value
        for tensor in parse(path).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [path, *(path.parent / location for location in locations)]
    return sum(file.stat().st_size for file in files if file.is_file())


def _memory(scenario: Scenario, bytes_needed: int) -> Found:
    """`bytes_needed`: of the models that are loaded at the start."""
    limit, available, needed_mib = scenario.device.memory_limit, available_bytes(), bytes_needed >> 20
    if limit is not None and bytes_needed > limit:
        place = "[device] memory_mib"
        yield place, f"{place} is {limit >> 20}, but the weights alone take {needed_mib} MiB"
    if available is not None and bytes_needed > available:
        available_mib = available >> 20
        yield "", f"the weights alone take {needed_mib} MiB of memory; {available_mib} MiB are available"


def available_bytes() -> int | None:
    """Memory that this process can still get, by the machine's account and its control group's limit; None
    where neither says."""
    found: list[int] = []
    if MEMINFO.is_file():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) << 10)
    if CGROUP_LIMIT.is_file() and (limit := CGROUP_LIMIT.read_text().strip()).isdigit():
        found.append(int(limit))
    return min(found, default=None)


# --- the server ----------------------------------------------------------------------------------------


def _server(scenario: Scenario, address: Address) -> Found:
    server = scenario.server
    for entry in fields(server):
        value, place = getattr(server, entry.name), f"[server] {entry.name}"
        if entry.name.endswith(FILE_SUFFIXES) and isinstance(value, str) and value:
            path = scenario.folder / value
            if not path.is_file():
                yield place, f"{place}: there is no file {path}"
            elif not os.access(path, os.R_OK):
                yield place, f"{place}: {path} cannot be read"
    yield from _certificate(scenario)
    for port in address.ports:
        if port and (problem := _taken(address.host, port)) is not None:
            yield "", problem


def _certificate(scenario: Scenario) -> Found:
    """Whether certificate and key, where there are such keys, go together."""
    certificate, key = (getattr(scenario.server, name, "") for name in ("tls_cert", "tls_key"))
    chain, private = scenario.folder / certificate, scenario.folder / key
    if not (certificate and key and chain.is_file() and private.is_file()):
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, private)
    except (ssl.SSLError, OSError) as error:
        yield "[server] tls_cert", f"[server] tls_cert and tls_key: {error}"


def _taken(host: str, port: int) -> str | None:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
    except OSError as error:
        return f"cannot listen on {host}:{port}: {error.strerror or error}"
    return None


def _store(where: Places) -> Found:
    """Whether profiles and learned state can be written."""
    folder = where.store
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        yield "", f"the store {where.store} cannot be written to"
