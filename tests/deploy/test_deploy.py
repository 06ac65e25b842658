"""What lies in `deploy/`: images, the systemd unit, Kubernetes manifests. Checked as far as that goes without
a container engine, a service manager or a cluster."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import venv
from pathlib import Path
from typing import Any

import pytest

from cotenant.config import load_scenario

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
IMAGES = [DEPLOY / "docker" / "Dockerfile", DEPLOY / "docker" / "Dockerfile.cuda"]
STATE = "/var/lib/cotenant"
LIMIT_S = 300


# --- images ----------------------------------------------------------------------------------------------


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) in order; comments gone, continued lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def last_stage(dockerfile: Path) -> list[tuple[str, str]]:
    found = instructions(dockerfile)
    begins = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    return found[begins:]


def only(dockerfile: Path, name: str) -> str:
    (found,) = [arguments for key, arguments in last_stage(dockerfile) if key == name]
    return found


def environment(dockerfile: Path) -> dict[str, str]:
    found = (arguments for key, arguments in last_stage(dockerfile) if key == "ENV")
    return dict(part.split("=", 1) for arguments in found for part in shlex.split(arguments))


@pytest.fixture(params=IMAGES, ids=lambda path: path.name)
def image(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def test_an_image_runs_as_nobody_special_and_says_how_it_is(image: Path) -> None:
    assert int(only(image, "USER").split(":")[0]) > 1000
    assert only(image, "STOPSIGNAL") == "SIGTERM"
    assert "ready()" in only(image, "HEALTHCHECK")
    assert only(image, "VOLUME") == STATE
    for name, value in environment(image).items():
        if name.endswith(("_HOME", "_DIR")):
            assert value.startswith(STATE), f"{name} is not in the volume"


def test_an_image_is_made_of_pinned_packages_and_public_bases(image: Path) -> None:
    found = instructions(image)
    for base in (arguments.split()[0] for name, arguments in found if name == "FROM"):
        assert re.fullmatch(r"python:3\.\d+-slim-\w+", base), base
    installs = [part for name, a in found if name == "RUN" for part in a.split("&&") if "pip install" in part]
    assert installs
    for install in installs:
        assert re.search(r"-r requirements/[\w.]+\.txt|--no-deps \.\s*$", install), install
    for part in ("://", "--index", "--trusted"):
        assert part not in "\n".join(a for name, a in found if name == "RUN")


def test_what_an_image_copies_is_there_and_not_ignored(image: Path) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, arguments in instructions(image):
        if name != "COPY" or arguments.startswith("--from"):
            continue
        for source in arguments.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source in kept, f".dockerignore hides {source}"


def test_the_image_serves_a_configuration_that_can_be_used(image: Path) -> None:
    command = json.loads(only(image, "CMD"))
    assert command[:2] == ["serve", "/models/server.toml"]
    assert load_scenario(DEPLOY / "docker" / "server.toml").models


READ_ONLY = """
set -e
mount --make-rprivate / && mount --bind "$0" "$0" && mount -o remount,bind,ro /
if touch "$1/written" 2>/dev/null; then exit 77; fi
shift
exec "$@"
"""
"""Runs a command that can write to the folder $0 alone; ends with 77 where the folder $1 stays writable."""


def read_only_except(volume: Path, folder: Path, command: list[str]) -> list[str]:
    return ["unshare", "--mount", "sh", "-c", READ_ONLY, str(volume), str(folder), *command]


@pytest.mark.slow
def test_the_image_writes_to_its_volume_alone(tmp_path: Path) -> None:
    """The image's environment, command and health check, everything but the volume read-only."""
    volume, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"
    volume.mkdir()
    elsewhere.mkdir()
    try:
        probe = subprocess.run(read_only_except(volume, elsewhere, ["true"]), capture_output=True)
    except OSError:
        pytest.skip("no unshare here")
    if probe.returncode != 0:
        pytest.skip("this machine does not let a test mount anything")
    dockerfile = IMAGES[0]
    given = {k: v.replace(STATE, str(volume)) for k, v in environment(dockerfile).items() if k != "PATH"}
    given |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(volume)}
    command = json.loads(only(dockerfile, "CMD"))
    command[1] = str(DEPLOY / "docker" / "server.toml")
    command[command.index("--http-port") + 1] = "0"
    confined = read_only_except(volume, elsewhere, [sys.executable, "-m", "cotenant", *command])
    server = subprocess.Popen(confined, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watch = threading.Timer(LIMIT_S, server.kill)
    watch.start()
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("ready http://0.0.0.0:"), server.communicate()[1]
        check = only(dockerfile, "HEALTHCHECK").partition("CMD ")[2]
        health = json.loads(check.replace(":8000", ":" + line.rsplit(":", 1)[1].strip()))
        assert subprocess.run([sys.executable, *health[1:]], env=given).returncode == 0
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate()
        assert server.returncode == 0, errors
        assert subprocess.run([sys.executable, *health[1:]], env=given).returncode == 1
    finally:
        watch.cancel()
        if server.poll() is None:
            server.kill()
            server.communicate()
    assert any(volume.rglob("profiles.sqlite"))


# --- systemd ---------------------------------------------------------------------------------------------

UNIT = DEPLOY / "systemd" / "cotenant.service"


def test_the_unit_waits_for_ready_reloads_by_signal_and_leaves_time_to_drain() -> None:
    unit = UNIT.read_text()
    for line in ("Type=notify", "ExecReload=/bin/kill -HUP $MAINPID", "NoNewPrivileges=yes",
                 "ProtectSystem=strict", "DynamicUser=yes"):  # fmt: skip
        assert line in unit.splitlines()
    assert re.search(r"^ExecStartPre=\S+ check ", unit, re.M)
    stop_s = int(re.findall(r"^TimeoutStopSec=(\d+)", unit, re.M)[0])
    assert stop_s > load_scenario(DEPLOY / "docker" / "server.toml").server.drain_s


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_takes_the_unit_and_finds_it_confined(tmp_path: Path) -> None:
    there = tmp_path / "cotenant.service"
    there.write_text(UNIT.read_text().replace("/opt/cotenant/bin/cotenant", shutil.which("true") or ""))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(there)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    security = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=20", str(there)]
    done = subprocess.run(security, capture_output=True, text=True)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze does not look at files")
    assert done.returncode == 0, done.stdout


# --- Kubernetes ------------------------------------------------------------------------------------------

REQUIREMENTS = ROOT / "requirements" / "kubernetes.txt"
ENVIRONMENT = ROOT / ".venv-kubernetes"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


@pytest.fixture(scope="module")
def checked() -> dict[str, Any]:
    """What `kubernetes_check.py` finds, in an environment made once per content of the requirements."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / "installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not (stamp.exists() and stamp.read_text() == wanted):
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        venv.create(ENVIRONMENT, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(REQUIREMENTS)]
        done = subprocess.run(install, capture_output=True, text=True, timeout=LIMIT_S)
        if done.returncode != 0:
            pytest.skip("the Kubernetes client cannot be installed here")
        stamp.write_text(wanted)
    script = [str(python), str(Path(__file__).with_name("kubernetes_check.py")), *map(str, MANIFESTS)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def of_kind(checked: dict[str, Any], kind: str) -> Any:
    (found,) = [manifest for manifest in checked["manifests"] if manifest["kind"] == kind]
    return found


@pytest.mark.slow
def test_every_field_of_the_manifests_is_one_that_kubernetes_knows(checked: dict[str, Any]) -> None:
    assert checked["problems"] == []
    assert len(checked["manifests"]) == len(MANIFESTS)


@pytest.mark.slow
def test_the_check_finds_what_is_wrong(checked: dict[str, Any], tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "apiVersion: apps/v1\nkind: Deployment\nspec:\n  replica: 2\n  selector: {}\n"
        "  template: {spec: {containers: [{image: x, ports: [{containerPort: '80'}]}]}}\n"
    )
    script = Path(__file__).with_name("kubernetes_check.py")
    done = subprocess.run(
        [str(ENVIRONMENT / "bin" / "python"), str(script), str(bad)], capture_output=True, text=True
    )
    found = "\n".join(json.loads(done.stdout)["problems"])
    for wanted in ("unknown field 'replica'", "expected int, not '80'", "field 'name' is missing"):
        assert wanted in found


@pytest.mark.slow
def test_the_manifests_fit_each_other_and_the_server(checked: dict[str, Any], tmp_path: Path) -> None:
    deployment, service = of_kind(checked, "Deployment"), of_kind(checked, "Service")
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"]
    for manifest in (of_kind(checked, "PodDisruptionBudget"), deployment):
        assert manifest["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    monitor = of_kind(checked, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    names = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(names)
    assert {e["port"] for e in monitor["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}
    arguments = container["args"]
    assert int(arguments[arguments.index("--http-port") + 1]) == names["http"]
    for probe, path in (("startup", "ready"), ("readiness", "ready"), ("liveness", "live")):
        asked = container[f"{probe}Probe"]["httpGet"]
        assert (asked["path"], asked["port"]) == (f"/v2/health/{path}", "http")
    for each in (container, *pod["spec"]["initContainers"]):
        assert each["securityContext"]["readOnlyRootFilesystem"] is True
        mounted = {mount["name"] for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
    config = of_kind(checked, "ConfigMap")["data"]["server.toml"]
    (tmp_path / "server.toml").write_text(config)
    scenario = load_scenario(tmp_path / "server.toml")
    assert scenario.device.lanes == int(container["resources"]["requests"]["cpu"])
    pause_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] > pause_s + scenario.server.drain_s
    (uid,) = {int(only(path, "USER").split(":")[0]) for path in IMAGES}
    assert pod["spec"]["securityContext"]["runAsUser"] == uid


@pytest.mark.slow
def test_every_manifest_is_in_the_kustomization_or_said_to_be_optional(checked: dict[str, Any]) -> None:
    text = (DEPLOY / "kubernetes" / "kustomization.yaml").read_text()
    listed = set(of_kind(checked, "Kustomization")["resources"])
    for manifest in MANIFESTS:
        if manifest.name not in ("kustomization.yaml", "servicemonitor.yaml"):
            assert manifest.name in listed
    assert "# - servicemonitor.yaml" in text
