"""`cotenant check`: what is wrong with a configuration, before a server is started with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def check(
    config: Annotated[Path, typer.Argument(help="CONFIG.toml", metavar="CONFIG.toml")],
    host: Annotated[str, typer.Option(help="Address that the server will bind.")] = "127.0.0.1",
    http_port: Annotated[int | None, typer.Option(help="HTTP port: is it free?", min=0, max=65535)] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port: is it free?", min=0, max=65535)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
    store: Annotated[
        Path | None,
        typer.Option("--store", help="Folder of profiles, learned state and logs.", metavar="DIR"),
    ] = None,
) -> None:
    """Say everything that is wrong with a config and what it names; exit status 1 if anything is."""
    from cotenant.catalogue import places
    from cotenant.checking import Address
    from cotenant.checking import check as check_all

    ports = [port for port in (http_port, grpc_port) if port is not None]
    scenario, problems = check_all(config, places(store), Address(host=host, ports=ports))
    names = [] if scenario is None else [model.name for model in scenario.models]
    if as_json:
        found = [dataclasses.asdict(problem) for problem in problems]
        typer.echo(json.dumps({"ok": not problems, "models": names, "problems": found}, indent=1))
    else:
        for problem in problems:
            typer.echo(str(problem), err=True)
        if not problems:
            typer.echo(f"{config}: {len(names)} models, nothing wrong")
    if problems:
        raise typer.Exit(1)
