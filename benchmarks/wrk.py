"""`wrk` as a load generator: a closed loop of one request over a number of connections."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping


def need_wrk() -> str | None:
    """None when `wrk` is there (installed if we may), else why the benchmark cannot run."""
    if shutil.which("wrk"):
        return None
    if os.geteuid() == 0 and shutil.which("apt-get"):
        for step in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "wrk"]):
            subprocess.run(step, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return None if shutil.which("wrk") else "wrk is not installed (Debian package: wrk)"


def run_wrk(
    url: str, body: bytes, headers: Mapping[str, str], connections: int, seconds: float
) -> dict[str, float]:
    """POST the body for `seconds`: `{requests, req_per_s, p50_ms, errors}`. Raises
    subprocess.SubprocessError."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        # JSON's escapes of ASCII text are Lua's too
        lines = ["wrk.method = 'POST'", f"wrk.body = {json.dumps(body.decode('ascii'))}"]
        lines += [f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}" for k, v in headers.items()]
        script.write("\n".join(lines) + "\n")
        script.flush()
        done = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", script.name, url],
            capture_output=True, text=True, timeout=seconds + 30, check=True,
        )  # fmt: skip
    text = done.stdout
    bad = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    bad += sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", text))
    return {
        "requests": int(_find(r"(\d+) requests in", text)[1]),
        "req_per_s": float(_find(r"Requests/sec:\s+([\d.]+)", text)[1]),
        "p50_ms": _to_ms(_find(r"50%\s+([\d.]+)(us|ms|s)", text)),
        "errors": bad,
    }


def _find(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text)
    if found is None:
        raise subprocess.SubprocessError(f"wrk printed something else than expected: {text[:300]}")
    return found


def _to_ms(found: re.Match[str]) -> float:
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]
