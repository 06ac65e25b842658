"""TOML to frozen configuration: scenarios and server configs, one reader, errors that name the place.

Fields carry a sentence with their unit; unknown keys are errors that name the key and the nearest known one.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from cotenant.domain import JobClass

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9._-]+\Z")
CLASSES = {job_class.name.lower(): job_class for job_class in JobClass}
ARRIVALS = ("poisson", "gamma", "trace")
KINDS = ("cpu", "twin", "cuda")
SCHEMES = ("zoo", "torch", "kernels")
ARCHIVE = ".pt2"
"""Suffix of `torch.export` archives."""
WEIGHTS = ".safetensors"
"""Suffix of files of weights, which go with an architecture."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, place, what was wrong and expected."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """The `[device]` table."""

    kind: str = "cpu"
    """`cpu`, `cuda`, or `twin` (simulated)."""
    spec: str = ""
    """Device that a twin stands for: v100, a100, h100, h200, l4."""
    lanes: int = 0
    """Most lanes that a policy may use; 0: the device's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The `[server]` table."""

    drain_s: float = 10.0
    """Seconds that SIGTERM leaves for what was admitted."""
    max_body_mib: int = 64
    """Largest request body, MiB."""
    allow_model_control: bool = False
    """Whether models may be loaded and unloaded over the API."""
    allow_code: bool = False
    """Whether sources that can carry code (`module:factory`) are accepted."""
    event_log: bool = False
    """Whether every event and action is written to the store's `logs` folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
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
    """Requests per second (or share of the capacity)."""
    arrivals: str = "poisson"
    """`poisson`, `gamma` (with `cv`), or `trace` (with `file`)."""
    cv: float = 1.0
    """Coefficient of variation of the gaps."""
    file: str | None = None
    """CSV with a timestamp or a gap column."""
    column: str | None = None
    """Which column of it; found by name when not given."""
    max_batch: int = 8
    """Most rows in one batch."""
    rows: int = 1
    """Rows per request that a load generator sends."""
    buckets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Ascending declared sizes of dynamic axes other than the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """From `at_s` on the overrides hold, per model name: `rate_per_s`, `arrivals`, `cv`, `file`, `column`."""

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

    @property
    def folder(self) -> Path:
        """Where relative paths start."""
        return self.path.parent

    def model(self, name: str) -> ModelConfig:
        """The model called `name`. Raises KeyError."""
        return next(model for model in self.models if model.name == name)


PHASE_KEYS = ("rate_per_s", "arrivals", "cv", "file", "column")


def load_scenario(path: Path) -> Scenario:
    """Read a scenario or a server's config. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return _Reader(path).scenario(raw)


def scenario_from_model(path: Path, slo_ms: float | None) -> Scenario:
    """What `cotenant serve MODEL.onnx --slo-ms 50` means."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", path.stem) or "model"
    job_class = JobClass.STANDARD if slo_ms is not None else JobClass.BEST_EFFORT
    model = ModelConfig(name=name, source=path.name, slo_ms=slo_ms, job_class=job_class)
    return Scenario(path=path.resolve().parent / f"{path.stem}.toml", models=(model,))


class _Reader:
    """Checks one file; every complaint carries its path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def scenario(self, raw: dict[str, Any]) -> Scenario:
        self._known(raw, ("load", "device", "server", "model", "phase"), "the file")
        load = self._table(LoadConfig, raw.get("load", {}), "[load]")
        device = self._table(DeviceConfig, raw.get("device", {}), "[device]")
        server = self._table(ServerConfig, raw.get("server", {}), "[server]")
        self._check(load.duration_s > 0, "[load] duration_s", "must be greater than 0")
        self._check(load.scale > 0, "[load] scale", "must be greater than 0")
        self._choice(load.scale_of, ("rates", "capacity"), "[load] scale_of")
        self._choice(device.kind, KINDS, "[device] kind")
        self._check(0 <= device.lanes <= 64, "[device] lanes", "must be from 1 to 64 (0: the default)")
        models = tuple(self._model(entry, i, server) for i, entry in enumerate(self._list(raw, "model")))
        self._check(bool(models), "[[model]]", "needs at least one model")
        names = [model.name for model in models]
        for name in names:
            self._check(names.count(name) == 1, f"[[model]] {name!r}", "is named twice")
        phases = tuple(self._phase(entry, i, names) for i, entry in enumerate(self._list(raw, "phase")))
        return Scenario(
            path=self._path.resolve(), load=load, device=device, server=server, models=models, phases=phases
        )

    def _model(self, raw: Any, index: int, server: ServerConfig) -> ModelConfig:
        where = f"[[model]] {index + 1}"
        self._check(isinstance(raw, dict), where, "must be a table")
        entry = dict(raw)
        if isinstance(entry.get("name"), str):
            where = f"[[model]] {entry['name']!r}"
        known = [f.name for f in fields(ModelConfig) if f.name != "job_class"] + ["class"]
        self._known(entry, known, where)
        buckets = self._buckets(entry.pop("buckets", {}), where)
        job_class = entry.pop("class", None)
        for key in ("name", "source"):
            self._check(key in entry, where, f"needs the key {key!r}")
        model = self._table(ModelConfig, {**entry, "buckets": buckets}, where)
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
        self._traffic(model.rate_per_s, model.arrivals, model.cv, model.file, where)
        self._source(model.source, server, where)
        self._architecture(model, where)
        return _replace(model, job_class=resolved)

    def _traffic(self, rate: float, arrivals: str, cv: float, file: str | None, where: str) -> None:
        self._check(rate >= 0, f"{where} rate_per_s", "must not be negative")
        self._choice(arrivals, ARRIVALS, f"{where} arrivals")
        self._check(cv > 0, f"{where} cv", "must be greater than 0")
        self._check(arrivals != "trace" or file is not None, f"{where} arrivals", '"trace" needs `file`')

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
        self._check(_is_number(at_s) and at_s >= 0, f"{where} at_s", "must be a number of seconds, 0 or more")
        overrides: dict[str, dict[str, Any]] = {}
        for name, entry in raw.get("model", {}).items():
            here = f"[phase.model.{name}]"
            self._nearest(name, names, f"{here}: unknown model")
            self._check(isinstance(entry, dict), here, "must be a table")
            self._known(entry, PHASE_KEYS, here)
            checked = self._table(ModelConfig, {"name": name, "source": "zoo:echo", **entry}, here)
            file = checked.file if "file" in entry else "inherited"
            self._traffic(checked.rate_per_s, checked.arrivals, checked.cv, file, here)
            overrides[name] = dict(entry)
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

    # --- the small checks -----------------------------------------------------------------------------

    def _table(self, cls: type[T], raw: Any, where: str) -> T:
        """A frozen config from a table, with unknown keys and wrong types refused."""
        self._check(isinstance(raw, dict), where, "must be a table")
        types = {f.name: str(f.type) for f in fields(cls)}  # type: ignore[arg-type]
        self._known(raw, tuple(types), where)
        values: dict[str, Any] = {}
        for key, value in raw.items():
            wanted = types[key]
            if "float" in wanted:
                good = _is_number(value)
                value = float(value) if good else value
                expected = "a finite number"
            elif wanted == "int":
                good, expected = type(value) is int, "a whole number"
            elif wanted == "bool":
                good, expected = type(value) is bool, "true or false"
            elif "str" in wanted and "Mapping" not in wanted:
                good, expected = isinstance(value, str), "a text"
            else:
                good, expected = True, ""
            self._check(good, f"{where} {key}", f"must be {expected}, not {value!r}")
            values[key] = value
        return cls(**values)

    def _list(self, raw: dict[str, Any], key: str) -> list[Any]:
        value = raw.get(key, [])
        self._check(isinstance(value, list), f"[[{key}]]", f"must be written [[{key}]], with double brackets")
        return list(value)

    def _known(self, raw: Mapping[str, Any], known: tuple[str, ...] | list[str], where: str) -> None:
        for key in raw:
            self._nearest(key, list(known), f"{where}: unknown key")

    def _nearest(self, key: str, known: list[str], what: str) -> None:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1, 0.4)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
            raise ConfigError(f"{self._path}: {what} {key!r}{hint}")

    def _choice(self, value: Any, known: tuple[str, ...], where: str) -> str:
        if value not in known:
            close = difflib.get_close_matches(str(value), known, 1, 0.4)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{self._path}: {where} must be one of {', '.join(known)}, not {value!r}{hint}")
        return str(value)

    def _check(self, good: Any, where: str, message: str) -> None:
        if not good:
            raise ConfigError(f"{self._path}: {where} {message}")


def holds_weights(source: str) -> bool:
    """Whether a source is a file of weights."""
    return ":" not in source and source.endswith(WEIGHTS)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _replace(model: ModelConfig, **changes: Any) -> ModelConfig:
    return ModelConfig(**{**{f.name: getattr(model, f.name) for f in fields(model)}, **changes})
