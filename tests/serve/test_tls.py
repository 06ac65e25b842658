"""TLS and mutual TLS over real connections, with certificates made on the spot."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import Server, echo_request

from cotenant.config import load_scenario
from cotenant.front_door import Door, open_door
from cotenant.serve.tls import server_context
from cotenant.toml_checks import ConfigError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not here")
Serve = Callable[..., Server]


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self.cert, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        self._openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
            "-keyout", str(self._key), "-out", str(self.cert),
        )  # fmt: skip

    def sign(self, name: str) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1, and its key."""
        cert, key, wish = (self._folder / f"{name}.{suffix}" for suffix in ("pem", "key", "csr"))
        extensions = self._folder / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1\n")
        self._openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
            "-keyout", str(key), "-out", str(wish),
        )  # fmt: skip
        self._openssl(
            "x509", "-req", "-days", "2", "-in", str(wish), "-CA", str(self.cert), "-CAkey", str(self._key),
            "-CAcreateserial", "-extfile", str(extensions), "-out", str(cert),
        )  # fmt: skip
        key.chmod(0o600)
        return cert, key

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "authority")


@pytest.fixture(scope="module")
def pair(authority: Authority) -> tuple[Path, Path]:
    return authority.sign("server")


def opened(config: Path) -> Door:
    scenario = load_scenario(config)
    return open_door(scenario.server, scenario.path, "127.0.0.1")


def ask(server: Server, client: ssl.SSLContext, body: bytes | None = None) -> int:
    path = "/v2/models/echo/infer" if body else "/v2"
    address = f"https://127.0.0.1:{server.port}{path}"
    with urllib.request.urlopen(urllib.request.Request(address, body), timeout=10, context=client) as answer:
        return int(answer.status)


def test_requests_over_tls_are_answered_and_plain_ones_are_not(
    serve: Serve, authority: Authority, pair: tuple[Path, Path]
) -> None:
    server = serve(tls=server_context(*pair, None))
    client = ssl.create_default_context(cafile=authority.cert)
    assert ask(server, client) == 200
    assert ask(server, client, json.dumps(echo_request()).encode()) == 200
    with pytest.raises(OSError):
        server.get("/v2")
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        ask(server, ssl.create_default_context())
    assert ask(server, client) == 200


def test_old_versions_of_tls_are_not_spoken(
    serve: Serve, authority: Authority, pair: tuple[Path, Path]
) -> None:
    server = serve(tls=server_context(*pair, None))
    client = ssl.create_default_context(cafile=authority.cert)
    client.minimum_version = ssl.TLSVersion.TLSv1_2
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert ask(server, client) == 200
    assert server_context(*pair, None).minimum_version is ssl.TLSVersion.TLSv1_2


def test_with_a_client_authority_only_its_clients_get_in(
    serve: Serve, tmp_path: Path, authority: Authority, pair: tuple[Path, Path]
) -> None:
    server = serve(tls=server_context(*pair, authority.cert))
    known = ssl.create_default_context(cafile=authority.cert)
    known.load_cert_chain(*authority.sign("client"))
    assert ask(server, known) == 200
    stranger = ssl.create_default_context(cafile=authority.cert)
    stranger.load_cert_chain(*Authority(tmp_path, "other").sign("stranger"))
    for client in (stranger, ssl.create_default_context(cafile=authority.cert)):
        with pytest.raises(OSError):
            ask(server, client)
    assert ask(server, known) == 200


def test_bad_files_are_named(tmp_path: Path, authority: Authority, pair: tuple[Path, Path]) -> None:
    cert, key = pair
    open_key = tmp_path / "open.key"
    open_key.write_bytes(key.read_bytes())
    open_key.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        server_context(cert, open_key, None)
    with pytest.raises(ValueError, match=r"nope\.pem"):
        server_context(tmp_path / "nope.pem", key, None)
    with pytest.raises(ValueError, match="no certificate and its key"):
        server_context(authority.cert, key, None)
    with pytest.raises(ValueError, match="holds no certificates"):
        server_context(cert, key, key)


def test_the_config_names_files_beside_it(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    for path in pair:
        shutil.copy(path, tmp_path)
    config = tmp_path / "server.toml"
    model = '[[model]]\nname = "a"\nsource = "zoo:echo"\n'
    config.write_text(f'[server]\ntls_cert = "server.pem"\ntls_key = "server.key"\n{model}')
    assert opened(config).scheme == "https"
    config.write_text(f'[server]\ntls_cert = "server.pem"\ntls_key = "other.key"\n{model}')
    with pytest.raises(ConfigError, match=r"other\.key.*cannot be read"):
        opened(config)
