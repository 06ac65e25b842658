"""The Python face: `model` makes a function or class servable, `serve` runs a server in this process.

@cotenant.model(slo_ms=50, example=np.zeros((1, 4), np.float32))
def double(x):
    return {"y": 2 * x}

double(np.ones(4, np.float32))          # without a server
cotenant.serve(double, http_port=8000)  # until SIGINT or SIGTERM
"""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import uvloop

from cotenant.assemble import Prepared, predictor_of, prepare
from cotenant.catalogue import Places, places
from cotenant.client import Client
from cotenant.config import (
    CLASSES,
    NAME,
    ConfigError,
    DeviceConfig,
    ModelConfig,
    Scenario,
    ServerConfig,
    load_scenario,
)
from cotenant.domain import NS_PER_MS, JobClass
from cotenant.execute.model import ModelSettings
from cotenant.execute.python_direct import Servable
from cotenant.execute.python_model import Declaration, Declared, PythonModel
from cotenant.host import HostConfig
from cotenant.host import serve as host_serve
from cotenant.learned import kept
from cotenant.schedule.policies import make_policy
from cotenant.user_models import UserModels

LONGEST_NAME = 60


def model(
    *,
    name: str | None = None,
    slo_ms: float | None = None,
    slo_percentile: float = 0.99,
    job_class: str | None = None,
    max_batch: int = 8,
    buckets: Mapping[str, Sequence[int]] | None = None,
    inputs: Declared | None = None,
    outputs: Declared | None = None,
    example: Mapping[str, Any] | Any = None,
    batched: bool = True,
) -> Callable[[Callable[..., Any]], Servable]:
    """Decorator that makes a function or class servable; it can still be called, on a batch or on a single
    row.

    A function takes numpy arrays by the names of its parameters, rows first, and returns a dict of arrays or
    one array (`output`). Of a class every lane gets an instance: `__init__` and `setup` run once per lane,
    `__call__` or `predict` per batch. A generator function may be preempted wherever it yields; it returns
    its outputs. What it takes is read off `example` (arrays by name, or the only one), or declared as
    `inputs`: element type and shape by name, without the axis of rows, variable axes by name (`{"ids":
    ("int64", ["seq"])}`); what it gives is found by running it, or declared as `outputs`.

    `slo_ms`: from arrival until the answer is due; without it the model is best effort. `slo_percentile`:
    share (0..1) that should meet it. `job_class`: protected, standard or best_effort. `max_batch`: most rows
    of one call. `buckets`: sizes to which named axes are padded. `batched=False`: one request per call, no
    axis of rows. Raises ValueError where this does not fit together."""

    def made(target: Callable[..., Any]) -> Servable:
        settings = ModelSettings(
            name=name or str(getattr(target, "__name__", "")),
            slo_ns=None if slo_ms is None else int(slo_ms * NS_PER_MS),
            slo_percentile=slo_percentile,
            job_class=_job_class(job_class, has_slo=slo_ms is not None),
            max_batch=max_batch,
            buckets=buckets or {},
        )
        declaration = Declaration(
            settings=settings, inputs=inputs, outputs=outputs, example=example, batched=batched
        )
        return Servable(target, declaration)

    return made


def source(
    source: str | Path,
    *,
    name: str | None = None,
    slo_ms: float | None = None,
    slo_scale: float | None = None,
    slo_percentile: float = 0.99,
    job_class: str | None = None,
    max_batch: int = 8,
    buckets: Mapping[str, Sequence[int]] | None = None,
) -> ModelConfig:
    """A model that is no Python object, to be served beside those that are: the path of an `.onnx` file (from
    the current folder), `zoo:NAME`, or `torch:NAME` (beside torch models only). `slo_scale`: the SLO as a
    multiple of the solo median at batch 1; the rest as in `model`."""
    text = str(source)
    named = name or re.sub(r"[^A-Za-z0-9._-]", "_", Path(text.partition(":")[2] or text).stem)
    return ModelConfig(
        name=named,
        source=text,
        slo_ms=slo_ms,
        slo_scale=slo_scale,
        slo_percentile=slo_percentile,
        job_class=_job_class(job_class, has_slo=slo_ms is not None or slo_scale is not None),
        max_batch=max_batch,
        buckets={axis: tuple(sizes) for axis, sizes in (buckets or {}).items()},
    )


def serve(
    *models: PythonModel | ModelConfig | str | Path,
    host: str = "127.0.0.1",
    http_port: int = 8000,
    policy: str = "default",
    device: str = "cpu",
    lanes: int = 0,
    drain_s: float = 10.0,
    store: Path | None = None,
    block: bool = True,
) -> Server:
    """Serve models in this process: what `model` and `source` made, or one CONFIG.toml.

    Blocks while models are loaded and profiled; then, with `block`, prints `ready URL` and serves until
    SIGINT or SIGTERM (in the main thread), else returns a running server, to be closed or used as a context
    manager. `http_port` 0: any that is free. `lanes`: most that run at a time (0: the device's default).
    `drain_s`: seconds for what was admitted when it stops. `store`: folder of profiles and learned state.
    Raises ValueError when a model cannot be loaded or the arguments do not fit, OSError when the port is
    taken."""
    given = {f"python:{entry.name}": entry for entry in models if isinstance(entry, PythonModel)}
    scenario = _scenario(models, DeviceConfig(kind=device, lanes=lanes), drain_s)
    config = HostConfig(host=host, http_port=http_port, policy=policy)
    make_policy(policy)  # an unknown name should not wait until everything is loaded
    where = places(store)
    prepared = prepare(scenario, where, user=UserModels(scenario.folder, given))
    if prepared.failed:
        prepared.executor.close()
        raise ValueError("; ".join(prepared.failed.values()))
    server = Server(prepared, config, where)
    if block:
        server.run()
    else:
        server.start()
    return server


class Server:
    """A server of this process, made by `serve`."""

    def __init__(self, prepared: Prepared, config: HostConfig, where: Places) -> None:
        self._prepared, self._config, self._where = prepared, config, where
        self._started: Future[str] = Future()
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], None] | None = None
        self.url = ""
        """Its address, once it runs."""

    def client(self, **options: Any) -> Client:
        """A client of it; `options` are those of `Client`."""
        return Client(self.url, **options)

    def run(self) -> None:
        """Serve in the calling thread until SIGINT or SIGTERM."""

        def ready(url: str) -> None:
            self.url = url
            sys.stdout.write(f"ready {url}\n")
            sys.stdout.flush()

        with _interpreter_as_it_was():
            uvloop.run(self._serve(ready))

    def start(self) -> None:
        """Serve in a thread of its own; returns when requests are accepted. Raises OSError."""
        self._thread = threading.Thread(target=self._in_thread, name="cotenant-server", daemon=True)
        self._thread.start()
        self.url = self._started.result()

    def close(self) -> None:
        """Answer what was admitted, then stop. Blocks until it has; idempotent."""
        if self._stop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._stop()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _in_thread(self) -> None:
        try:
            with _interpreter_as_it_was():
                uvloop.run(self._serve_until_closed())
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve_until_closed(self) -> None:
        told, loop = asyncio.Event(), asyncio.get_running_loop()

        def stop() -> None:
            loop.call_soon_threadsafe(told.set)

        self._stop = stop
        await self._serve(self._started.set_result, told)

    async def _serve(self, on_ready: Callable[[str], None], told: asyncio.Event | None = None) -> None:
        policy = make_policy(self._config.policy, self._prepared.executor.lanes)
        try:
            predictor = predictor_of(self._prepared, policy)
        except ConfigError:
            self._prepared.executor.close()
            raise
        learned = self._where.learned(self._prepared.scenario.path)
        with kept(self._prepared, policy, predictor, learned, _note) as keepers:
            await host_serve(
                self._prepared, self._config, on_ready, keepers, predictor, told=told, tell=_note
            )


# --- small things -----------------------------------------------------------------------------------------


@contextmanager
def _interpreter_as_it_was() -> Iterator[None]:
    """An engine tunes the interpreter for itself; here it is a guest."""
    interval_s, thresholds = sys.getswitchinterval(), gc.get_threshold()
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        gc.set_threshold(*thresholds)


def _job_class(said: str | None, *, has_slo: bool) -> JobClass:
    if said is None:
        return JobClass.STANDARD if has_slo else JobClass.BEST_EFFORT
    if said not in CLASSES:
        raise ValueError(f"job_class is {said!r}; expected one of {', '.join(CLASSES)}")
    if not has_slo and CLASSES[said] is not JobClass.BEST_EFFORT:
        raise ValueError(f"job_class {said!r} needs slo_ms")
    return CLASSES[said]


def _scenario(
    models: Sequence[PythonModel | ModelConfig | str | Path], device: DeviceConfig, drain_s: float
) -> Scenario:
    """What a configuration file with these models would say."""
    files = [Path(entry) for entry in models if isinstance(entry, str | Path)]
    if files:
        if len(models) > 1 or files[0].suffix != ".toml":
            raise ValueError("serve takes models, or one CONFIG.toml; for a model file use cotenant.source")
        found = load_scenario(files[0])
        return replace(found, device=replace(found.device, lanes=device.lanes or found.device.lanes))
    tables = tuple(_table(entry) for entry in models)
    names = [table.name for table in tables]
    if not tables:
        raise ValueError("serve needs at least one model")
    for name in names:
        if names.count(name) > 1 or not NAME.match(name):
            raise ValueError(f"model name {name!r} is there twice or has other characters than A-Za-z0-9._-")
    label = "-".join(["python", *names])[:LONGEST_NAME]
    server = ServerConfig(allow_code=True, drain_s=drain_s)
    return Scenario(path=Path.cwd() / f"{label}.toml", device=device, server=server, models=tables)


def _table(entry: PythonModel | ModelConfig | str | Path) -> ModelConfig:
    if isinstance(entry, ModelConfig):
        return entry
    if not isinstance(entry, PythonModel):
        raise TypeError(f"serve got {type(entry).__name__}; decorate it with cotenant.model")
    settings = entry.declaration.settings
    return ModelConfig(
        name=entry.name,
        source=f"python:{entry.name}",
        job_class=settings.job_class,
        max_batch=settings.max_batch,
    )


def _note(line: str) -> None:
    sys.stderr.write(f"cotenant: {line}\n")
