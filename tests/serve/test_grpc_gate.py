"""The gate in front of gRPC: the same keys, roles and quotas as over HTTP, and nothing without a key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_serving import SERVICE, GrpcServer, ended

from cotenant.domain import JobClass
from cotenant.serve.gate import Gate
from cotenant.serve.grpc.entrance import OPEN, ROLES
from cotenant.serve.grpc.health import HEALTH
from cotenant.serve.grpc.reflection import REFLECTION
from cotenant.serve.keys import Key, KeyRing, Principal, Role, Tenant
from cotenant.serve.settings import FrontDoor, ServeConfig
from cotenant.testing import EchoLink


def key(role: Role, tenant: str = "shop", job_class: JobClass = JobClass.PROTECTED) -> Key:
    name = f"{role}{tenant}"
    principal = Principal(tenant=tenant, key_id=name, roles=frozenset({role}), job_class=job_class)
    return Key(id=name, sha256=hashlib.sha256(text_of(role, tenant).encode()).digest(), principal=principal)


def text_of(role: Role, tenant: str = "shop") -> str:
    return f"ctk_{role}{tenant}_secret"


def bearer(role: Role, tenant: str = "shop") -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {text_of(role, tenant)}")]


def keys() -> KeyRing:
    slow = Tenant(name="slow", requests_per_s=0.001, burst=1)
    return KeyRing(
        [*map(key, Role), key(Role.INFER, "slow"), key(Role.INFER, "last", JobClass.BEST_EFFORT)],
        [Tenant(name="shop"), slow, Tenant(name="last")],
    )


@pytest.fixture
def server() -> Iterator[GrpcServer]:
    link, config = EchoLink(), ServeConfig(allow_model_control=True, door=FrontDoor(open_health=False))
    server = GrpcServer(link, config, gate=Gate(keys(), config.door, link.now))
    server.start()
    yield server
    server.stop()


def methods() -> list[str]:
    """Every method that is served, by what the services declare."""
    found = [f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods]
    for service in health_pb2.DESCRIPTOR.services_by_name.values():
        found += [f"/{HEALTH}/{method.name}" for method in service.methods]
    return [*found, *(f"/{name}/ServerReflectionInfo" for name in REFLECTION)]


def ask(server: GrpcServer, method: str, metadata: list[tuple[str, str]] | None = None) -> StatusCode:
    call = server.channel.stream_stream(method)
    try:
        for _ in call(iter([b""]), metadata=metadata, timeout=1):
            break
    except grpc.RpcError as error:
        return error.code()
    return StatusCode.OK


def test_every_method_has_roles_and_none_answers_without_a_key(server: GrpcServer) -> None:
    assert set(methods()) == set(ROLES)
    assert set(ROLES) > OPEN
    for method in methods():
        assert ask(server, method) is StatusCode.UNAUTHENTICATED, method
        assert ask(server, method, [("x-api-key", "ctk_x_y")]) is StatusCode.UNAUTHENTICATED, method


def test_a_key_without_the_role_is_told_so_and_one_with_it_is_let_in(server: GrpcServer) -> None:
    for method, roles in ROLES.items():
        for role in set(Role) - roles:
            assert ask(server, method, bearer(role)) is StatusCode.PERMISSION_DENIED, (method, role)
    assert server.infer_raw().code is StatusCode.UNAUTHENTICATED
    assert ended(server.begin("ModelInfer", infer(), metadata=bearer(Role.INFER))).ok
    control = {"metadata": bearer(Role.ADMIN)}
    assert server.rpc("RepositoryIndex", **control).ok
    unknown = f"/{SERVICE.full_name}/Nope"
    assert ask(server, unknown) is StatusCode.UNAUTHENTICATED
    assert ask(server, unknown, bearer(Role.METRICS)) is StatusCode.UNIMPLEMENTED


def infer() -> object:
    from grpc_serving import raw_request

    return raw_request()


def test_a_tenant_above_its_rate_is_refused_with_when_to_come_back(server: GrpcServer) -> None:
    slow = {"metadata": bearer(Role.INFER, "slow")}
    assert ended(server.begin("ModelInfer", infer(), **slow)).ok
    refused = ended(server.begin("ModelInfer", infer(), **slow))
    assert refused.code is StatusCode.RESOURCE_EXHAUSTED
    assert "above its rate" in refused.details
    assert float(refused.trailing["retry-after-ms"]) > 0


def test_no_request_rises_above_the_class_of_its_key(server: GrpcServer) -> None:
    def priority(tenant: str) -> int:
        assert ended(server.begin("ModelInfer", infer(), metadata=bearer(Role.INFER, tenant))).ok
        return server.link.calls[-1].priority

    assert priority("last") == JobClass.BEST_EFFORT
    assert priority("shop") == 0
