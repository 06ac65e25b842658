"""The V2 model repository extension, whatever the protocol: the index, and who may load and unload what.

Only models of the server's own configuration and repository can be loaded. Parameters that bring a model or
its configuration along (`config`, `file:...`) are refused: accepting them lets any client run code.
"""

from __future__ import annotations

from collections.abc import Mapping

from cotenant.domain import model_of, version_of
from cotenant.engine_client import EngineClient
from cotenant.redact import without_paths
from cotenant.serve.dataplane import UNAVAILABLE
from cotenant.serve.errors import BadRequest
from cotenant.serve.settings import ServeConfig


def repository_index(client: EngineClient, *, ready_only: bool) -> list[dict[str, str]]:
    """Every model that could be loaded with its state, or only those that are ready."""
    models = client.metadata()
    entries = []
    for status in client.status():
        if ready_only and status.state != "READY":
            continue
        entry = {"name": model_of(status.name), "state": status.state, "reason": without_paths(status.reason)}
        if "@" in status.name:
            entry["version"] = version_of(status.name)
        elif status.name in models:
            entry["version"] = models[status.name].versions[-1]
        entries.append(entry)
    return entries


def check_allowed(config: ServeConfig, *, from_web: bool) -> None:
    """Raises BadRequest (403) where clients may not load and unload models. `from_web`: the request has an
    Origin, so a browser sends it on behalf of a page."""
    if not config.allow_model_control:
        raise BadRequest(
            403,
            "loading and unloading models is turned off on this server; allow_model_control = true "
            "under [server] in its config turns it on",
        )
    if from_web:
        raise BadRequest(403, "model control is not open to web pages (the request has an Origin header)")


def check_control(
    client: EngineClient, config: ServeConfig, name: str, parameters: Mapping[str, object]
) -> None:
    """Raises BadRequest when there is no such model (404) or a parameter is refused (400)."""
    for parameter, value in parameters.items():
        if parameter == "config" or parameter.startswith("file:"):
            raise BadRequest(
                400, f"parameters.{parameter:.40}: refused; only models of the server's configuration load"
            )
        # no model depends on another: with or without its dependents is the same
        if parameter != "unload_dependents" or not isinstance(value, bool):
            raise BadRequest(400, f"parameters.{parameter:.100}: unknown parameter")
    known = config.repository or any(status.name == name for status in client.status())
    if not known or "@" in name:
        raise BadRequest(404, f"unknown model '{name:.100}'")


def check_done(what: str, name: str, error: str | None) -> None:
    """Raises BadRequest when the engine could not load or unload the model (400), has none of this name
    (404), or is not there (503)."""
    if error is not None:
        if error.startswith("unknown model"):
            raise BadRequest(404, error)
        status = 503 if error.startswith(UNAVAILABLE) else 400
        raise BadRequest(status, f"model '{name}' did not {what}: {without_paths(error)}")
