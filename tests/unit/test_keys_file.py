"""The file of keys, the command that makes them, and a server that is not open by accident."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cotenant.cli import app
from cotenant.config import Scenario, load_scenario
from cotenant.domain import JobClass
from cotenant.front_door import Door, is_loopback, open_door
from cotenant.keys_file import load_keys
from cotenant.serve.keys import Role
from cotenant.toml_checks import ConfigError

MODEL = '[[model]]\nname = "a"\nsource = "zoo:echo"\n'
TENANT = '[[tenant]]\nname = "t"\n'
KEY = f'[[key]]\nid = "k"\nsha256 = "{"0" * 64}"\nroles = ["infer"]\ntenant = "t"\n'


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def make(*arguments: str) -> str:
    """`cotenant key new ...`; the key it prints."""
    done = CliRunner().invoke(app, ["key", "new", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()[0]


def test_a_key_that_was_made_is_the_tenants_and_stands_nowhere_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    first = make("--role", "infer", "--tenant", "shop", "--file", str(file), "--requests-per-s", "5")
    second = make(
        "--role", "admin", "--role", "metrics", "--tenant", "ops", "--file", str(file),
        "--class", "best_effort", "--expires", "2100-01-01",
    )  # fmt: skip
    third = make("--role", "infer", "--tenant", "shop", "--file", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    ring = load_keys(file)
    found = [ring.find(text.encode()) for text in (first, second, third)]
    assert [principal and principal.tenant for principal in found] == ["shop", "ops", "shop"]
    assert found[1] is not None
    assert found[1].roles == {Role.ADMIN, Role.METRICS}
    assert found[1].job_class is JobClass.BEST_EFFORT
    assert ring.tenants["shop"].requests_per_s == 5
    assert ring.tenants["shop"].burst == 5
    for text in (first, second, third):
        assert text.split("_", 2)[2] not in file.read_text()
    assert ring.find(first.encode() + b"x") is None


def test_without_a_file_the_tables_are_printed_to_append() -> None:
    done = CliRunner().invoke(app, ["key", "new", "--role", "infer", "--tenant", "shop"])
    assert '[[tenant]]\nname = "shop"' in done.stderr
    assert "sha256" in done.stderr
    assert done.stdout.startswith("ctk_")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--role", "root", "--tenant", "t"], "'root'"),
        (["--role", "infer", "--tenant", "a b"], "'a b'"),
        (["--role", "infer", "--tenant", "t", "--class", "gold"], "'gold'"),
        (["--role", "infer", "--tenant", "t", "--file", "/proc/nope/keys"], "cannot be written"),
    ],
)
def test_a_key_for_nothing_is_refused(arguments: list[str], word: str) -> None:
    done = CliRunner().invoke(app, ["key", "new", *arguments])
    assert done.exit_code == 2
    assert word in done.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("[[key]]", "cotenant key new")),
        (KEY, ("[[tenant]]", "'t'")),
        (TENANT + KEY.replace('"t"', '"tt"'), ("'tt'", "did you mean 't'")),
        (TENANT + TENANT + KEY, ("'t'", "twice")),
        (TENANT + KEY + KEY, ("'k'", "twice")),
        (TENANT + KEY.replace("infer", "infr"), ("infr", "infer")),
        (TENANT + KEY.replace('["infer"]', '"infer"'), ("roles", "list")),
        (TENANT + KEY.replace('["infer"]', "[]"), ("roles", "list")),
        (TENANT + KEY.replace("0" * 64, "0" * 63), ("sha256", "64")),
        (TENANT + KEY + 'class = "gold"\n', ("class", "protected")),
        (TENANT + KEY + "expires = 7\n", ("expires", "2027-01-31")),
        (TENANT + KEY + "x = 7\n", ("unknown key", "'x'")),
        (TENANT + "requests_per_s = 0\n" + KEY, ("requests_per_s", "greater than 0")),
        (TENANT + "burst = 3\n" + KEY, ("burst", "requests_per_s")),
        ("[[key]\n", ("not valid TOML",)),
        ("x = " + "[" * 5000, ("not valid TOML",)),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = write(tmp_path / "keys.toml", text)
    with pytest.raises(ConfigError) as error:
        load_keys(file)
    for word in (*words, str(file)):
        assert word in str(error.value)


@pytest.mark.parametrize("mode", [0o644, 0o606, 0o620, 0o602])
def test_a_file_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    file = write(tmp_path / "keys.toml", TENANT + KEY, mode)
    with pytest.raises(ConfigError, match=f"{mode:04o}.*chmod 600"):
        load_keys(file)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_a_private_file_is_read(tmp_path: Path, mode: int) -> None:
    assert load_keys(write(tmp_path / "keys.toml", TENANT + KEY, mode)).tenants["t"].name == "t"


# --- the front door ---------------------------------------------------------------------------------------


def door(scenario: Scenario, host: str) -> Door:
    return open_door(scenario.server, scenario.path, host)


def config(tmp_path: Path, server: str = "") -> Path:
    return write(tmp_path / "server.toml", f"[server]\n{server}\n{MODEL}")


def test_without_keys_a_server_listens_on_this_machine_only(tmp_path: Path) -> None:
    scenario = load_scenario(config(tmp_path))
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        assert door(scenario, host).keys is None
    for host in ("0.0.0.0", "::", "192.0.2.7", ""):
        with pytest.raises(ConfigError, match=r"cotenant key new.*open = true"):
            door(scenario, host)


def test_a_server_can_be_opened_on_purpose_but_not_its_model_control(tmp_path: Path) -> None:
    assert door(load_scenario(config(tmp_path, "open = true")), "0.0.0.0").keys is None
    both = load_scenario(config(tmp_path, "open = true\nallow_model_control = true"))
    assert door(both, "127.0.0.1").keys is None
    with pytest.raises(ConfigError, match="admin"):
        door(both, "0.0.0.0")


def test_keys_are_found_beside_the_config_and_open_the_door(tmp_path: Path) -> None:
    write(tmp_path / "keys.toml", TENANT + KEY)
    found = door(load_scenario(config(tmp_path, 'keys_file = "keys.toml"')), "0.0.0.0")
    assert found.keys is not None
    assert found.scheme == "http"
    os.chmod(tmp_path / "keys.toml", 0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        door(load_scenario(config(tmp_path, 'keys_file = "keys.toml"')), "127.0.0.1")


def test_serving_with_missing_keys_fails_before_anything_is_loaded(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve", str(config(tmp_path)), "--host", "0.0.0.0"])
    assert done.exit_code == 2
    assert "cotenant key new" in done.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("server", "word"),
    [
        ("max_connections = 0", "max_connections"),
        ("header_timeout_s = 0.0", "header_timeout_s"),
        ('tls_cert = "a"', "tls_key"),
        ('tls_key = "a"', "tls_cert"),
        ('tls_client_ca = "a"', "tls_cert"),
        ('open = true\nkeys_file = "k"', "leave one"),
        ("max_conections = 9", "did you mean 'max_connections'"),
    ],
)
def test_settings_that_make_no_sense_are_named(tmp_path: Path, server: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        load_scenario(config(tmp_path, server))


def test_a_name_that_nothing_knows_is_not_this_machine() -> None:
    assert not is_loopback("no-such-host.invalid")
