"""Who may call what over gRPC: every method with the roles that may use it, deny by default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cotenant.serve.access import read_credentials
from cotenant.serve.errors import BadRequest
from cotenant.serve.gate import Denial, Gate, Refusal
from cotenant.serve.grpc.health import HEALTH, INFERENCE
from cotenant.serve.grpc.reflection import REFLECTION
from cotenant.serve.keys import ANYONE, EVERY_ROLE, Principal, Role

INFER = frozenset({Role.INFER})
READERS = frozenset({Role.INFER, Role.ADMIN})
ADMINS = frozenset({Role.ADMIN})

_OF_INFERENCE: Mapping[str, frozenset[Role]] = {
    "ServerLive": EVERY_ROLE,
    "ServerReady": EVERY_ROLE,
    "ModelReady": EVERY_ROLE,
    "ServerMetadata": EVERY_ROLE,
    "ModelMetadata": READERS,
    "ModelInfer": INFER,
    "ModelStreamInfer": INFER,
    "ModelConfig": READERS,
    "ModelStatistics": EVERY_ROLE,
    "RepositoryIndex": READERS,
    "RepositoryModelLoad": ADMINS,
    "RepositoryModelUnload": ADMINS,
    "SystemSharedMemoryStatus": ADMINS,
    "SystemSharedMemoryRegister": ADMINS,
    "SystemSharedMemoryUnregister": ADMINS,
    "CudaSharedMemoryStatus": ADMINS,
    "CudaSharedMemoryRegister": ADMINS,
    "CudaSharedMemoryUnregister": ADMINS,
    "TraceSetting": ADMINS,
    "LogSettings": ADMINS,
}
ROLES: Mapping[str, frozenset[Role]] = {
    **{f"/{INFERENCE}/{name}": roles for name, roles in _OF_INFERENCE.items()},
    **{f"/{HEALTH}/{name}": EVERY_ROLE for name in ("Check", "Watch", "List")},
    **{f"/{name}/ServerReflectionInfo": EVERY_ROLE for name in REFLECTION},
}
"""What does not stand here is refused, to whoever asks."""
OPEN = frozenset(
    (f"/{INFERENCE}/ServerLive", f"/{INFERENCE}/ServerReady", f"/{HEALTH}/Check", f"/{HEALTH}/Watch")
)
"""What may be left open to everybody."""


def admit(
    gate: Gate,
    method: str,
    metadata: Iterable[tuple[str, str | bytes]],
    *,
    served: bool,
    open_health: bool,
) -> Principal | Refusal:
    """Who calls, or why not. Inferences are metered when they are known; everything else here. What is not
    `served` is nobody's secret: any valid key may learn that it is not there."""
    if open_health and method in OPEN:
        return ANYONE
    headers = [
        (name.encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in metadata
        if name in ("authorization", "x-api-key")
    ]
    try:
        presented, _, _ = read_credentials(headers)
    except BadRequest as error:
        return Refusal(Denial.UNAUTHENTICATED, error.message)
    roles = ROLES.get(method) if served else EVERY_ROLE
    found = gate.check(presented, roles)
    if isinstance(found, Refusal) or roles == INFER:
        return found
    return gate.meter(found) or found
