"""`cotenant key`: keys of the API."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

keys = typer.Typer(no_args_is_help=True, help="Make API keys.")


@keys.callback()
def root() -> None:
    """Make API keys."""


@keys.command()
def new(
    role: Annotated[
        list[str], typer.Option(help="What it is for: infer, admin or metrics; may be given more than once.")
    ],
    tenant: Annotated[str, typer.Option(help="Whose key it is.", metavar="NAME")],
    file: Annotated[
        Path | None,
        typer.Option(help="Append it to this file; else the tables to append are printed.", metavar="FILE"),
    ] = None,
    job_class: Annotated[
        str, typer.Option("--class", help="Highest class of its requests: protected, standard, best_effort.")
    ] = "protected",
    expires: Annotated[
        datetime | None, typer.Option(help="Day from which on it is refused.", formats=["%Y-%m-%d"])
    ] = None,
    requests_per_s: Annotated[
        float | None, typer.Option(help="Rate limit of a new tenant, requests/s.", min=1e-6)
    ] = None,
    burst: Annotated[
        int, typer.Option(help="Requests of a new tenant at once; 0: a second's worth.", min=0)
    ] = 0,
    max_in_flight: Annotated[
        int, typer.Option(help="Most inferences of a new tenant at a time; 0: no limit.", min=0)
    ] = 0,
) -> None:
    """Make a key. It is printed once, and kept nowhere: the file holds only its SHA-256."""
    from cotenant.keys_file import CLASSES, NewKey, add_key
    from cotenant.serve.keys import Role

    for name in role:
        if name not in tuple(Role):
            raise typer.BadParameter(f"{name!r} is none of {', '.join(Role)}", param_hint="--role")
    if job_class not in CLASSES:
        raise typer.BadParameter(f"{job_class!r} is none of {', '.join(CLASSES)}", param_hint="--class")
    wanted = NewKey(
        tenant=tenant,
        roles=tuple(dict.fromkeys(map(Role, role))),
        job_class=CLASSES[job_class],
        expires=expires.date() if expires else None,
        requests_per_s=requests_per_s,
        burst=burst,
        max_in_flight=max_in_flight,
    )
    try:
        text, tables = add_key(file, wanted)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(text)
    if file is None:
        typer.echo(f"append to the file named by keys_file under [server]:\n{tables}", err=True)
    else:
        typer.echo(f"appended to {file}; the key above is shown only once", err=True)
