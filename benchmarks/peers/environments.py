"""A virtual environment per peer, made from `requirements/peers-NAME.txt`; cotenant runs in this one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from settings import ROOT

STAMP = ".installed"
INSTALL_LIMIT_S = 1800


class NoEnvironmentError(Exception):
    """An environment cannot be made; the message is the reason."""


def interpreter(name: str, folder: Path) -> Path:
    """The interpreter of a server's environment, made first if it is not there as pinned. Raises
    NoEnvironmentError."""
    if name == "cotenant":
        if importlib.util.find_spec("torch") is None:
            raise NoEnvironmentError("torch is not installed beside cotenant (`make torch`)")
        return Path(sys.executable)
    pins = ROOT / "requirements" / f"peers-{name}.txt"
    wanted = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()
    python, stamp = folder / name / "bin" / "python", folder / name / STAMP
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"installing {name} into {folder / name}", file=sys.stderr, flush=True)
        _run([sys.executable, "-m", "venv", "--clear", str(folder / name)])
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        _run([*pip, "-r", str(pins)])
        stamp.write_text(wanted)
    return python


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT_S)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if not line.startswith("WARNING")]
        raise NoEnvironmentError(f"cannot be installed: {' '.join(lines[-3:])}") from error
    except subprocess.TimeoutExpired as error:
        raise NoEnvironmentError(f"installing took more than {INSTALL_LIMIT_S} s") from error


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Of the interpreter and of packages in its environment."""
    code = (
        "import json, platform, sys\nfrom importlib.metadata import version\n"
        "print(json.dumps({'python': platform.python_version(), **{p: version(p) for p in sys.argv[1:]}}))"
    )
    done = subprocess.run([str(python), "-c", code, *packages], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found
