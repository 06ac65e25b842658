"""TOML to frozen configuration: scenarios and server configs, one reader, errors that name the place.

Fields carry a sentence with their unit; unknown keys are errors that name the key and the nearest known one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cotenant.domain import JobClass
from cotenant.labels import ALL
from cotenant.serve.settings import FrontDoor
from cotenant.serve.settings import complaints as door_complaints
from cotenant.telemetry.logs import FORMATS as LOG_FORMATS
from cotenant.telemetry.logs import LEVELS as LOG_LEVELS
from cotenant.toml_checks import ConfigError, TomlChecks, is_number
from cotenant.workload.traffic import PREFIXES, PROCESSES, TrafficShape, complaints

__all__ = ["ConfigError", "load_scenario", "scenario_from_model"]
NAME = re.compile(r"[A-Za-z0-9._-]+\Z")
CLASSES = {job_class.name.lower(): job_class for job_class in JobClass}
KINDS = ("cpu", "twin", "cuda")
REPOSITORY_MODES = ("none", "explicit", "poll")
SCHEMES = ("zoo", "torch", "kernels")
ARCHIVE = ".pt2"
"""Suffix of `torch.export` archives."""
WEIGHTS = ".safetensors"
"""Suffix of files of weights, which go with an architecture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """The `[load]` table."""

    duration_s: float = 60.0
    """Seconds during which requests are offered."""
    seed: int = 1
    """Seed of arrivals, inputs and simulated noise."""
    scale: float = 1.0
    """Multiplies every rate."""
    scale_of: str = "rates"
    """`rates`: rates are requests per second; `capacity`: rates are shares of the measured capacity."""
    popularity: str = "given"
    """`given`: each model says its `rate_per_s`; `zipf`: the n-th model of the file gets a share of
    `[load] rate_per_s` proportional to n to the power of -`zipf_alpha`."""
    rate_per_s: float = 0.0
    """`zipf`: requests per second of all models together; not needed when rates are shares."""
    zipf_alpha: float = 0.9
    """`zipf`: how unequal the models are; 0: all alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """The `[device]` table."""

    kind: str = "cpu"
    """`cpu`, `cuda`, or `twin` (simulated)."""
    spec: str = ""
    """Device that a twin stands for: v100, a100, h100, h200, l4."""
    lanes: int = 0
    """Most lanes that a policy may use; 0: the device's default."""
    memory_mib: int = 0
    """Memory (MiB) that the loaded models may take on the device together, 0: no limit. On the CPU it is the
    growth of this process; a model that would not fit is not loaded."""

    @property
    def memory_limit(self) -> int | None:
        """The same in bytes; None: no limit."""
        return self.memory_mib << 20 or None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(FrontDoor):
    """The `[server]` table."""

    drain_s: float = 10.0
    """Seconds that SIGTERM leaves for what was admitted."""
    max_body_mib: int = 64
    """Largest request body, MiB."""
    allow_model_control: bool = False
    """Whether models may be loaded and unloaded over the API."""
    shared_memory: bool = False
    """Whether clients on this machine may hand tensors over in system shared memory (files of /dev/shm)."""
    allow_code: bool = False
    """Whether sources that can carry code (`module:factory`) are accepted."""
    event_log: bool = False
    """Whether every event and action is written to the store's `logs` folder."""
    in_process: bool = False
    """Whether the engine runs in the process that answers HTTP, which then ends with it."""
    http_workers: int = 1
    """Front-end processes."""
    shared_memory_mib: int = 0
    """Most memory that tensors on their way between one front end and the engine may take, in each direction,
    MiB; what is not in use costs nothing. 0: eight times `max_body_mib`."""
    engine_silence_s: float = 60.0
    """Seconds for which an engine process may not answer before it counts as hanging and is started anew; 0:
    for ever."""
    log_format: str = "text"
    """Log lines on stderr: `text`, or `json` (one object per line)."""
    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`: what is less is not logged."""
    access_log: bool = False
    """Whether every answered HTTP request is logged."""
    triton_metrics: bool = False
    """Whether `/metrics` has the counters under Triton's names (`nv_inference_*`) too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryConfig:
    """The `[repository]` table: models that lie in a folder, FOLDER/MODEL/VERSION/model.onnx."""

    path: str = ""
    """The folder, inside the config's own."""
    mode: str = "none"
    """`none`: all models are loaded at the start and stay as they are; `explicit`: those in `load` are, and
    clients load and unload over the API; `poll`: all are, and follow what becomes of the folder."""
    poll_s: float = 15.0
    """Seconds after which the folder is looked at again (not with `none`)."""
    load: tuple[str, ...] = ()
    """`explicit`: models to load at the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(TrafficShape):
    """One `[[model]]` table."""

    name: str
    """Name in URLs: letters, digits, `.`, `_`, `-`."""
    source: str
    """`zoo:NAME`, `torch:NAME`, `kernels:FILE.csv#MODEL`, a path inside the config's folder (`.onnx`,
    `.safetensors`, or a `.pt2` archive), or `module:factory`; the last two need `allow_code`."""
    architecture: str | None = None
    """Model of the torch zoo (NAME or NAME-small) whose weights a `.safetensors` source holds; not needed
    where the file says it."""
    slo_ms: float | None = None
    """Milliseconds from arrival to answer."""
    slo_scale: float | None = None
    """The same as a multiple of the solo median at batch 1; with both the larger holds."""
    slo_percentile: float = 0.99
    """Share of requests (0..1) that should meet it."""
    job_class: JobClass = JobClass.STANDARD
    """`class`: protected, standard or best_effort; without an SLO best_effort."""
    rate_per_s: float = 0.0
    """Mean number of requests per second (or share of the capacity); 0 with a trace: as recorded."""
    arrivals: str = "poisson"
    """`poisson`, `gamma`, `trace` (with `file`), `mmpp`, `diurnal` or `flash`."""
    file: str | None = None
    """`trace`: CSV with a timestamp or a gap column."""
    max_batch: int = 8
    """Most rows in one batch."""
    rows: int = 1
    """Rows per request that a load generator sends."""
    buckets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Ascending declared sizes of dynamic axes other than the batch."""
    labels: Mapping[str, Path] = field(default_factory=dict)
    """File with one label per line for the elements of the outputs, or a table of such files by output:
    answers of the classification extension then name them. Inside the config's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """From `at_s` on the overrides hold, per model name: keys of its traffic."""

    at_s: float
    overrides: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A whole file."""

    path: Path
    load: LoadConfig = LoadConfig()
    device: DeviceConfig = DeviceConfig()
    server: ServerConfig = ServerConfig()
    models: tuple[ModelConfig, ...] = ()
    phases: tuple[Phase, ...] = ()
    repository: RepositoryConfig | None = None
    arrivals_file: Path | None = None
    """No key of the file: replay these requests instead of drawing any (`--arrivals-in`)."""

    @property
    def folder(self) -> Path:
        """Where relative paths start."""
        return self.path.parent

    def model(self, name: str) -> ModelConfig:
        """The model called `name`. Raises KeyError."""
        return next(model for model in self.models if model.name == name)

    def stretches(self, model: ModelConfig) -> Iterator[tuple[float, ModelConfig]]:
        """The model's settings over time: (from when on, s; settings), the first from 0 on."""
        yield 0.0, model
        for phase in sorted(self.phases, key=lambda phase: phase.at_s):
            if model.name in phase.overrides:
                model = replace(model, **phase.overrides[model.name])
                yield phase.at_s, model


PHASE_KEYS = ("rate_per_s", "arrivals", "file", *(f.name for f in fields(TrafficShape)))


def load_scenario(path: Path) -> Scenario:
    """Read a scenario or a server's config. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return _Reader(path).scenario(raw)


def scenario_from_table(path: Path, raw: dict[str, Any]) -> Scenario:
    """What `load_scenario` makes of a file that holds these tables. Raises ConfigError."""
    return _Reader(path).scenario(raw)


def model_from_table(path: Path, table: dict[str, Any], server: ServerConfig) -> ModelConfig:
    """A model from a table with the keys of `[[model]]`, read from the file `path`. Raises ConfigError."""
    return _Reader(path)._model(table, 0, server)


def scenario_from_model(path: Path, slo_ms: float | None) -> Scenario:
    """What `cotenant serve MODEL.onnx --slo-ms 50` means."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", path.stem) or "model"
    job_class = JobClass.STANDARD if slo_ms is not None else JobClass.BEST_EFFORT
    model = ModelConfig(name=name, source=path.name, slo_ms=slo_ms, job_class=job_class)
    return Scenario(path=path.resolve().parent / f"{path.stem}.toml", models=(model,))


class _Reader(TomlChecks):
    """Reads one file."""

    def scenario(self, raw: dict[str, Any]) -> Scenario:
        self._known(raw, ("load", "device", "server", "repository", "model", "phase"), "the file")
        load = self._table(LoadConfig, raw.get("load", {}), "[load]")
        device = self._table(DeviceConfig, raw.get("device", {}), "[device]")
        server = self._table(ServerConfig, raw.get("server", {}), "[server]")
        self._choice(server.log_format, LOG_FORMATS, "[server] log_format")
        self._choice(server.log_level, LOG_LEVELS, "[server] log_level")
        for key, message in door_complaints(server):
            self._check(False, f"[server] {key}", message)
        self._check(load.duration_s > 0, "[load] duration_s", "must be greater than 0")
        self._check(load.scale > 0, "[load] scale", "must be greater than 0")
        self._choice(load.scale_of, ("rates", "capacity"), "[load] scale_of")
        self._choice(device.kind, KINDS, "[device] kind")
        self._processes(server)
        self._check(0 <= device.lanes <= 64, "[device] lanes", "must be from 1 to 64 (0: the default)")
        self._check(device.memory_mib >= 0, "[device] memory_mib", "must be 0 or more")
        repository = self._repository(raw["repository"]) if "repository" in raw else None
        models = tuple(self._model(entry, i, server) for i, entry in enumerate(self._list(raw, "model")))
        self._check(bool(models) or repository, "[[model]]", "needs at least one model, or a [repository]")
        names = [model.name for model in models]
        for name in names:
            self._check(names.count(name) == 1, f"[[model]] {name!r}", "is named twice")
        models = self._popularity(load, models, raw)
        phases = tuple(self._phase(entry, i, names) for i, entry in enumerate(self._list(raw, "phase")))
        scenario = Scenario(
            path=self._path.resolve(),
            load=load,
            device=device,
            server=server,
            models=models,
            phases=phases,
            repository=repository,
        )
        for model, entry in zip(models, self._list(raw, "model"), strict=True):
            self._traffic(scenario, model, set(entry))
        return scenario

    def _repository(self, raw: Any) -> RepositoryConfig:
        table = dict(raw) if isinstance(raw, dict) else raw
        names = table.pop("load", []) if isinstance(table, dict) else []
        found = self._table(RepositoryConfig, table, "[repository]")
        good = isinstance(names, list) and all(isinstance(name, str) and NAME.match(name) for name in names)
        self._check(good, "[repository] load", "must be a list of names of models")
        self._choice(found.mode, REPOSITORY_MODES, "[repository] mode")
        self._check(not names or found.mode == "explicit", "[repository] load", 'goes with mode = "explicit"')
        self._check(found.poll_s > 0, "[repository] poll_s", "must be greater than 0")
        self._check(found.path, "[repository] path", "is needed: the folder of the models")
        folder = self.inside(found.path, "[repository] path")
        self._check(folder.is_dir(), "[repository] path", f"names no folder: {folder}")
        return replace(found, load=tuple(names))

    def _model(self, raw: Any, index: int, server: ServerConfig) -> ModelConfig:
        where = f"[[model]] {index + 1}"
        self._check(isinstance(raw, dict), where, "must be a table")
        entry = dict(raw)
        if isinstance(entry.get("name"), str):
            where = f"[[model]] {entry['name']!r}"
        known = [f.name for f in fields(ModelConfig) if f.name != "job_class"] + ["class"]
        self._known(entry, known, where)
        buckets = self._buckets(entry.pop("buckets", {}), where)
        labels = self._labels(entry.pop("labels", {}), where)
        job_class = entry.pop("class", None)
        for key in ("name", "source"):
            self._check(key in entry, where, f"needs the key {key!r}")
        model = self._table(ModelConfig, {**entry, "buckets": buckets, "labels": labels}, where)
        self._check(
            bool(NAME.match(model.name)) and model.name not in (".", ".."),
            f"{where} name",
            "must consist of letters, digits, '.', '_' and '-'",
        )
        has_slo = model.slo_ms is not None or model.slo_scale is not None
        if job_class is None:
            resolved = JobClass.STANDARD if has_slo else JobClass.BEST_EFFORT
        else:
            resolved = CLASSES[self._choice(job_class, tuple(CLASSES), f"{where} class")]
            needs_slo = resolved is not JobClass.BEST_EFFORT and not has_slo
            self._check(not needs_slo, f"{where} class", f"{job_class!r} needs slo_ms or slo_scale")
        for key in ("slo_ms", "slo_scale"):
            value = getattr(model, key)
            self._check(value is None or value > 0, f"{where} {key}", "must be greater than 0")
        self._check(0.5 <= model.slo_percentile < 1, f"{where} slo_percentile", "must be from 0.5 to below 1")
        self._check(1 <= model.max_batch <= 1024, f"{where} max_batch", "must be from 1 to 1024")
        self._check(1 <= model.rows <= model.max_batch, f"{where} rows", "must be from 1 to max_batch")
        self._source(model.source, server, where)
        self._architecture(model, where)
        return replace(model, job_class=resolved)

    def _processes(self, server: ServerConfig) -> None:
        here = "[server] http_workers"
        self._check(1 <= server.http_workers <= 64, here, "must be from 1 to 64")
        self._check(
            server.http_workers == 1 or not server.in_process,
            here,
            "above 1 does not go with in_process = true",
        )
        self._check(server.engine_silence_s >= 0, "[server] engine_silence_s", "must be 0 or more")
        self._check(
            server.http_workers == 1 or not server.shared_memory,
            here,
            "above 1 does not go with shared_memory = true: a region is registered with one process",
        )
        least = 2 * server.max_body_mib
        self._check(
            server.shared_memory_mib == 0 or server.shared_memory_mib >= least,
            "[server] shared_memory_mib",
            f"must be at least twice max_body_mib, {least} (0: the default)",
        )

    def _popularity(
        self, load: LoadConfig, models: tuple[ModelConfig, ...], raw: dict[str, Any]
    ) -> tuple[ModelConfig, ...]:
        """The models with their shares of a total rate, where one is given."""
        self._choice(load.popularity, ("given", "zipf"), "[load] popularity")
        if load.popularity == "given":
            for key in ("rate_per_s", "zipf_alpha"):
                self._check(key not in raw.get("load", {}), f"[load] {key}", 'goes with popularity = "zipf"')
            return models
        for entry in self._list(raw, "model"):
            self._check(
                "rate_per_s" not in entry,
                f"[[model]] {entry['name']!r} rate_per_s",
                'does not go with [load] popularity = "zipf", which spreads [load] rate_per_s over the '
                "models: leave one of the two out",
            )
        shares = load.scale_of == "capacity"
        self._check(load.zipf_alpha >= 0, "[load] zipf_alpha", "must be 0 or more")
        self._check(
            load.rate_per_s > 0 or shares,
            "[load] rate_per_s",
            'must be greater than 0 with popularity = "zipf"',
        )
        weights = [n**-load.zipf_alpha for n in range(1, len(models) + 1)]
        unit = (load.rate_per_s or 1.0) / sum(weights)
        return tuple(replace(m, rate_per_s=unit * weight) for m, weight in zip(models, weights, strict=True))

    def _traffic(self, scenario: Scenario, model: ModelConfig, given: set[str]) -> None:
        """Whether the traffic of a model makes sense in every phase. `given`: keys of its table."""
        used: set[str] = set()
        for _, settings in scenario.stretches(model):
            where = f"[[model]] {model.name!r}" if settings is model else f"[phase.model.{model.name}]"
            self._choice(settings.arrivals, PROCESSES, f"{where} arrivals")
            used.add(settings.arrivals)
            for key, message in complaints(settings.arrivals, settings.rate_per_s, settings.file, settings):
                self._check(False, f"{where} {key}", message)
            self._check(
                settings.arrivals != "trace" or settings.rate_per_s or scenario.load.scale_of != "capacity",
                f"{where} rate_per_s",
                'is needed with a trace and [load] scale_of = "capacity": which share of the capacity it is',
            )
        for phase in scenario.phases:
            given |= set(phase.overrides.get(model.name, ()))
        for key in sorted(given):
            process = next((PREFIXES[prefix] for prefix in PREFIXES if key.startswith(prefix)), None)
            self._check(
                process is None or process in used,
                f"[[model]] {model.name!r} {key}",
                f'goes with arrivals = "{process}", which the model never has',
            )

    def _source(self, source: str, server: ServerConfig, where: str) -> None:
        scheme, colon, rest = source.partition(":")
        if colon and scheme in ("zoo", "torch"):
            self._check(bool(NAME.match(rest)), f"{where} source", f"{source!r} names no model")
        elif colon and scheme == "kernels":
            file, _, model = rest.partition("#")
            self._check(bool(file and model), f"{where} source", "must be kernels:FILE.csv#MODEL")
        if (colon and scheme not in SCHEMES) or source.endswith(ARCHIVE):
            self._check(
                server.allow_code,
                f"{where} source",
                f"{source!r} can carry code: set allow_code = true under [server] to accept it",
            )
        if not colon:
            self.inside(source, f"{where} source")

    def _architecture(self, model: ModelConfig, where: str) -> None:
        name, here = model.architecture, f"{where} architecture"
        if name is not None:
            message = f"goes with a {WEIGHTS} source only; {model.source!r} has its own: leave the key out"
            self._check(holds_weights(model.source), here, message)
            self._check(bool(NAME.match(name)), here, f"{name!r} names no model of the torch zoo")

    def inside(self, relative: str, where: str) -> Path:
        """The path, which must stay inside the file's folder."""
        root = self._path.resolve().parent
        path = (root / relative).resolve()
        self._check(path.is_relative_to(root), where, f"{relative!r} leads out of the folder {root}")
        return path

    def _phase(self, raw: Any, index: int, names: list[str]) -> Phase:
        where = f"[[phase]] {index + 1}"
        self._check(isinstance(raw, dict), where, "must be a table")
        self._known(raw, ("at_s", "model"), where)
        at_s = raw.get("at_s")
        self._check(is_number(at_s) and at_s >= 0, f"{where} at_s", "must be a number of seconds, 0 or more")
        overrides: dict[str, dict[str, Any]] = {}
        for name, entry in raw.get("model", {}).items():
            here = f"[phase.model.{name}]"
            self._nearest(name, names, f"{here}: unknown model")
            self._check(isinstance(entry, dict), here, "must be a table")
            self._known(entry, PHASE_KEYS, here)
            checked = self._table(ModelConfig, {"name": name, "source": "zoo:echo", **entry}, here)
            overrides[name] = {key: getattr(checked, key) for key in entry}
        return Phase(at_s=float(at_s), overrides=overrides)

    def _buckets(self, raw: Any, where: str) -> dict[str, tuple[int, ...]]:
        self._check(isinstance(raw, dict), f"{where} buckets", "must be a table, {seq = [32, 64]}")
        result = {}
        for axis, sizes in raw.items():
            here = f"{where} buckets.{axis}"
            good = isinstance(sizes, list) and sizes and all(type(size) is int and size > 0 for size in sizes)
            self._check(good, here, "must be a list of positive whole numbers")
            self._check(sizes == sorted(set(sizes)), here, "must be ascending, without repeats")
            result[axis] = tuple(sizes)
        return result

    def _labels(self, raw: Any, where: str) -> dict[str, Path]:
        files = {ALL: raw} if isinstance(raw, str) else raw
        here = f"{where} labels"
        good = isinstance(files, dict) and all(isinstance(file, str) for file in files.values())
        self._check(good, here, "must be the name of a file, or a table of such names by output")
        return {output: self.inside(file, here) for output, file in files.items()}


def holds_weights(source: str) -> bool:
    """Whether a source is a file of weights."""
    return ":" not in source and source.endswith(WEIGHTS)
