"""The command line: each command reads its arguments, calls one function below, and shows what came of it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cotenant import __version__
from cotenant.cli_check import check
from cotenant.cli_key import keys
from cotenant.cli_study import study
from cotenant.config import ConfigError, Scenario, load_scenario, scenario_from_model

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(study, name="study")
app.command()(check)
app.add_typer(keys, name="key")
to_stderr = Console(stderr=True, emoji=False)
to_stdout = Console(emoji=False)

StoreOption = Annotated[
    Path | None, typer.Option("--store", help="Folder of profiles, learned state and logs.", metavar="DIR")
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the report here.", metavar="FILE")]
ArrivalsInOption = Annotated[
    Path | None,
    typer.Option("--arrivals-in", help="Replay these requests (see --arrivals-out).", metavar="FILE.csv"),
]
ScenarioArgument = Annotated[Path, typer.Argument(help="Scenario TOML.", metavar="SCENARIO.toml")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Many models on one device, every deadline kept."""
    if version:
        typer.echo(f"cotenant {__version__}")
        raise typer.Exit


@app.command()
def serve(
    source: Annotated[Path, typer.Argument(help="CONFIG.toml or MODEL.onnx", metavar="CONFIG|MODEL")],
    slo_ms: Annotated[
        float | None, typer.Option(help="Deadline of a lone MODEL.onnx, ms.", min=0.001)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="HTTP port; 0: any free.", min=0, max=65535)] = 8000,
    grpc_port: Annotated[
        int | None, typer.Option(help="gRPC port; 0: any free. Default: no gRPC.", min=0, max=65535)
    ] = None,
    policy: Annotated[str, typer.Option(help="Scheduling policy.")] = "default",
    record: Annotated[
        Path | None,
        typer.Option(
            help="Record dispatches as data sets BASE-00001.* and so on. "
            "Default: live/NAME among the recordings in the store.",
            metavar="BASE",
        ),
    ] = None,
    record_mb: Annotated[
        float, typer.Option(help="Disk for the recording, MB: the newest stay; 0: none.", min=0)
    ] = 32.0,
    http_workers: Annotated[
        int | None, typer.Option(help="Front-end processes. Default: the config's, else 1.", min=1, max=64)
    ] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Run the engine in the process that answers HTTP.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Run the server: a process that answers HTTP, and one that holds the engine."""
    from cotenant.telemetry.logs import logging_to

    with _clear_errors(), ExitStack() as stack:
        scenario = _config(source, slo_ms)
        settings = scenario.server
        stack.enter_context(logging_to(sys.stderr, settings.log_format, settings.log_level))
        if in_process or scenario.server.in_process or sys.platform != "linux":
            if (http_workers or 1) > 1:
                raise ConfigError("--http-workers needs the engine in a process of its own")
            _serve_in_process(scenario, host, http_port, grpc_port, policy, record, record_mb, store)
            return
        if (http_workers or 1) > 1 and settings.shared_memory:
            raise ConfigError(
                "--http-workers above 1 does not go with shared_memory = true: a region is registered with "
                "one process"
            )
        from cotenant.split_host import SplitConfig, serve_split

        config = SplitConfig(
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            n_fronts=http_workers or scenario.server.http_workers,
            policy=policy,
            record=record,
            record_mb=record_mb,
            store=store,
        )
        operator = stack.enter_context(_Operator())
        _run_loop(serve_split(scenario, config, operator))


class _Operator:
    """Shows what the processes of a server say: a progress bar until it is ready, and lines of the log."""

    def __enter__(self) -> Self:
        from cotenant.telemetry.logs import Logger

        self._log = Logger("server")
        self._bar = ExitStack()
        self.progress = self._bar.enter_context(_progress())
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def ready(self, url: str) -> None:
        self._bar.close()
        _say_ready(url)

    def said(self, kind: str, text: str) -> None:
        match kind:
            case "note":
                self._log.info("server.note", text)
            case "not served":
                self._log.error("model.not_served", text)
            case "process":
                self._log.error("process.ended", text)
            case _:
                self._log.warning("server.warning", text)


def _serve_in_process(
    scenario: Scenario,
    host: str,
    http_port: int,
    grpc_port: int | None,
    policy: str,
    record: Path | None,
    record_mb: float,
    store: Path | None,
) -> None:
    from cotenant.assemble import predictor_of, prepare
    from cotenant.catalogue import places
    from cotenant.experiment.coruns import recorded_live
    from cotenant.front_door import open_door
    from cotenant.host import HostConfig
    from cotenant.host import serve as host_serve
    from cotenant.learned import kept
    from cotenant.schedule.policies import make_policy
    from cotenant.telemetry.logs import Logger

    log = Logger("server")
    _stop_when_told()
    make_policy(policy)  # neither an unknown name nor a bad key should wait until everything is loaded
    open_door(scenario.server, scenario.path, host)
    where = places(store)
    with _progress() as told:
        prepared = prepare(scenario, where, progress=told)
    for name, reason in prepared.failed.items():
        log.error("model.not_served", reason, model=name)
    log_path = where.store / "logs" / "events.log" if scenario.server.event_log else None
    config = HostConfig(
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        policy=policy,
        log_path=log_path,
        slow_path=where.slow,
    )
    base = record or where.coruns / "live" / scenario.path.stem
    learned = where.learned(scenario.path)
    try:
        chosen = make_policy(policy, prepared.executor.lanes)
        predictor = predictor_of(prepared, chosen)
    except ConfigError:
        prepared.executor.close()
        raise
    with (
        recorded_live(prepared, base, record_mb, partial(log.warning, "recording.stopped")) as recorders,
        kept(prepared, chosen, predictor, learned, partial(log.info, "learned.state")) as keepers,
    ):
        observers = [*recorders, *keepers]
        tell = partial(log.info, "server.reload")
        _run_loop(host_serve(prepared, config, _say_ready, observers, predictor, tell=tell))


@app.command()
def profile(
    source: Annotated[Path, typer.Argument(help="CONFIG.toml", metavar="CONFIG.toml")],
    corun: Annotated[bool, typer.Option("--corun", help="Measure models beside each other too.")] = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write the profile here (with --corun).", metavar="FILE")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record",
            help="Record co-runs to BASE.*.csv (with --corun); a recording of the same is continued. "
            "Default: in the store, named after config and time.",
            metavar="BASE",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Seconds of co-runs to record (with --corun); 0: none.", min=0)
    ] = 60.0,
    probe: Annotated[
        bool, typer.Option(help="Measure features: each model beside stressors (about 15 s per model).")
    ] = True,
    store: StoreOption = None,
) -> None:
    """Measure the models of a config on this machine and store what was found; resumes where it stopped."""
    from cotenant.assemble import know_features, prepare
    from cotenant.catalogue import places
    from cotenant.clock import wall_date
    from cotenant.experiment.coruns import measure_coruns, record_prepared
    from cotenant.experiment.datasets import read_dataset
    from cotenant.experiment.probing import probe_models
    from cotenant.experiment.recorded import summarise_coruns
    from cotenant.profile.export import to_json

    for flag, value in (("--export", export), ("--record", record)):
        if value is not None and not corun:
            raise _fail(f"{flag} needs --corun: without it models run alone")
    with _clear_errors():
        where = places(store)
        scenario = _config(source, None)
        base = record or where.coruns / f"{scenario.path.stem}-{wall_date()}"
        with _progress() as told:
            prepared = prepare(scenario, where, progress=told)
            try:
                probed = probe_models(prepared, where, told) if probe else None
                know_features(prepared, where)
                measured = measure_coruns(prepared, where, progress=told) if corun else None
                if corun and seconds:
                    record_prepared(prepared, base, seconds, progress=told)
            finally:
                prepared.executor.close()
        _show_profile(prepared)
        if probed is not None:
            _show_features(probed)
        if corun and seconds:
            to_stdout.print(f"recorded {base}: {summarise_coruns(read_dataset(base)).text}", highlight=False)
        if measured is not None and export is not None:
            export.write_text(to_json(measured), encoding="utf-8")
            to_stdout.print(f"wrote {escape(str(export))}")
        for reason in prepared.failed.values():
            to_stderr.print(f"[yellow]not measured:[/] {escape(reason)}", highlight=False)
        if prepared.failed:
            raise typer.Exit(1)


@app.command()
def simulate(
    scenario: ScenarioArgument,
    policy: Annotated[str, typer.Option(help="Scheduling policy.")] = "default",
    seed: Annotated[int | None, typer.Option(help="Replaces the scenario's seed.")] = None,
    scale: Annotated[float | None, typer.Option(help="Replaces the scenario's scale.", min=1e-6)] = None,
    capacity: Annotated[
        float | None, typer.Option(help="Capacity (requests/s) that shares refer to; else simulated.")
    ] = None,
    arrivals_out: Annotated[
        Path | None,
        typer.Option("--arrivals-out", help="Write every request that is offered.", metavar="FILE.csv"),
    ] = None,
    arrivals_in: ArrivalsInOption = None,
    json_file: JsonOption = None,
    store: StoreOption = None,
) -> None:
    """Run a scenario on a simulated device with the same scheduler; same report as `bench`."""
    from cotenant.catalogue import places
    from cotenant.experiment.arrival_files import write_arrivals
    from cotenant.experiment.capacity import simulated_capacity
    from cotenant.experiment.load import offer, replaying
    from cotenant.experiment.simulated import device_of
    from cotenant.experiment.simulated import simulate as run
    from cotenant.experiment.tables import show_report

    with _clear_errors():
        config = replaying(load_scenario(scenario), arrivals_in, scale, capacity)
        device = device_of(config, places(store))
        if config.load.scale_of == "capacity" and capacity is None and arrivals_in is None:
            capacity = simulated_capacity(config, device)
        if arrivals_out is not None:
            offered = offer(config, scale=scale, seed=seed, capacity_per_s=capacity)
            write_arrivals(arrivals_out, config, offered, [spec.slo_ns for spec in device.specs])
        with _progress() as told:
            report = run(
                config,
                device,
                policy,
                seed=seed,
                scale=scale,
                capacity_per_s=capacity,
                progress=lambda done, total: told("simulating", done, total),
            )
        _write(json_file, report)
        show_report(to_stdout, report)


@app.command()
def bench(
    url: Annotated[str, typer.Argument(help="Address of a running server.")],
    scenario: ScenarioArgument,
    scale: Annotated[float | None, typer.Option(help="Replaces the scenario's scale.", min=1e-6)] = None,
    capacity: Annotated[
        float | None, typer.Option(help="Capacity (requests/s) that shares refer to; else measured.")
    ] = None,
    arrivals_in: ArrivalsInOption = None,
    json_file: JsonOption = None,
    store: StoreOption = None,
) -> None:
    """Open-loop load on all models of a live server; latency counts from the intended arrival."""
    from cotenant.experiment.bench import measure_capacity, run_bench
    from cotenant.experiment.load import replaying
    from cotenant.experiment.tables import show_report

    with _clear_errors():
        config = replaying(load_scenario(scenario), arrivals_in, scale, capacity)
        if config.load.scale_of == "capacity" and capacity is None and arrivals_in is None:
            capacity = asyncio.run(measure_capacity(url, config))
            to_stderr.print(f"capacity {capacity:.1f} requests/s")
        with _progress() as told:
            report = asyncio.run(
                run_bench(
                    url,
                    config,
                    scale=scale,
                    capacity_per_s=capacity,
                    progress=lambda done, total: told("offering load", done, total),
                )
            )
        _write(json_file, report)
        show_report(to_stdout, report)


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(help="Seconds of load per run (12 runs).", min=1, max=60)] = 6.0,
    json_file: JsonOption = None,
    plot: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("demo.png"),
    store: StoreOption = None,
) -> None:
    """Serve the built-in zoo on this machine and compare policies; ends by itself in under 3 minutes."""
    from cotenant.experiment.demo import run_demo

    with _clear_errors():
        report = asyncio.run(run_demo(to_stdout, seconds=seconds, store=store, plot=plot))
        _write(json_file, report)


@app.command()
def replay(
    log: Annotated[Path, typer.Argument(help="Event log of a live run.", metavar="EVENTS.log")],
) -> None:
    """Feed a recorded event log to a fresh scheduler and compare its actions with the recorded ones."""
    from cotenant.experiment.replaying import replay_log

    with _clear_errors():
        n_events, n_actions, mismatch = replay_log(log)
        if mismatch is not None:
            raise _fail(f"{log}: {mismatch}")
        typer.echo(f"{n_events} events replayed to the same {n_actions} actions")


@app.command()
def explain(
    request_id: Annotated[str, typer.Argument(help="The x-request-id of an answer.")],
    url: Annotated[str, typer.Option(help="Address of the server.")] = "http://127.0.0.1:8000",
    json_file: JsonOption = None,
    store: StoreOption = None,
) -> None:
    """Why a request was late, refused or fast: asks the server, else looks among the slow ones in the
    store."""
    from cotenant.catalogue import places
    from cotenant.experiment.explaining import explain_request, show_explanation

    with _clear_errors():
        found = explain_request(url, request_id, places(store).slow)
        _write(json_file, found)
        show_explanation(to_stdout, found)


# --- small things ---------------------------------------------------------------------------------


def _config(source: Path, slo_ms: float | None) -> Scenario:
    if source.suffix == ".onnx":
        if not source.is_file():
            raise ConfigError(f"there is no file {source}")
        return scenario_from_model(source, slo_ms)
    if slo_ms is not None:
        raise ConfigError("--slo-ms goes with a lone MODEL.onnx; in a config set slo_ms per model")
    return load_scenario(source)


def _run_loop(main: Any) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def _say_ready(url: str) -> None:
    from cotenant.notify import READY, notify

    print(f"ready {url}", flush=True)
    notify(READY)


def _warn(message: str) -> None:
    with suppress(OSError):  # what is said may go to the disk that is full
        to_stderr.print(f"[yellow]warning:[/] {escape(message)}", highlight=False, soft_wrap=True)


def _note(message: str) -> None:
    with suppress(OSError):
        to_stderr.print(f"learned: {message}", highlight=False, markup=False, soft_wrap=True)


def _fail(message: str) -> typer.Exit:
    to_stderr.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    return typer.Exit(2)


class _Stopped(BaseException):
    """SIGTERM came before the server was ready. No Exception, which a model's own code might catch."""


def _stop_when_told() -> None:
    """Until the server is ready and takes signals itself, SIGTERM ends the process and SIGHUP waits for
    nothing (the file is still being read). To the first process of a container signals without a handler do
    nothing."""

    def stop(number: int, frame: object) -> None:
        raise _Stopped

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Expected failures end in one line, not in a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except _Stopped:
        raise typer.Exit from None
    except (ValueError, OSError) as error:
        raise _fail(str(error)) from None


@contextmanager
def _progress() -> Iterator[Any]:
    """A progress bar on stderr; quiet where nobody watches."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        console=to_stderr,
        transient=True,
        disable=not to_stderr.is_terminal,
    )
    with bar:
        task = bar.add_task("starting", total=1)

        def told(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=max(1, total))

        yield told


def _show_profile(prepared: Any) -> None:
    from cotenant.experiment.tables import show_profiles

    show_profiles(to_stdout, prepared.profiles)


def _show_features(probed: Any) -> None:
    from cotenant.experiment.tables import show_features

    show_features(to_stdout, probed.table)
    for problem in probed.disturbances:
        to_stderr.print(f"[yellow]the machine was not quiet:[/] {problem}", highlight=False)


def _write(path: Path | None, report: Any) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def main() -> None:
    """Entry point of the `cotenant` command."""
    try:
        app()
    except BrokenPipeError:
        sys.exit(1)
