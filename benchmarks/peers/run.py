"""Six servers side by side on this machine: an echo, and three torch models with deadlines under open load.

    python benchmarks/peers/run.py [--repeats 3] [--seconds 8] [--servers a,b] [--json FILE] [--plot FILE.png]

What each part measures, and how each server is set up: README.md beside this file. Stopped, it goes on where
it was when called again with the same settings on the same commit, unless `--fresh` is given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "src")]

from catalogue import SERVERS  # noqa: E402
from environments import NoEnvironmentError, interpreter  # noqa: E402
from measuring import Run  # noqa: E402
from plot import draw  # noqa: E402
from settings import cache_folder  # noqa: E402
from summary import Partial, commit, show  # noqa: E402

from wrk import need_wrk  # noqa: E402


def environments(names: list[str], folder: Path, left_out: dict[str, str]) -> dict[str, Path]:
    """Interpreters by server; what has none goes into `left_out`."""
    found = {}
    for name in names:
        try:
            found[name] = interpreter(name, folder)
        except NoEnvironmentError as error:
            left_out[name] = str(error)
            print(f"{name} left out: {error}", file=sys.stderr, flush=True)
    return found


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--servers", default=",".join(SERVERS), help="names, separated by commas")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--plot", type=Path, help="draw the picture here (PNG)")
    parser.add_argument("--envs", type=Path, default=cache_folder() / "envs", help="folder of environments")
    parser.add_argument("--fresh", action="store_true", help="forget what a stopped run has measured")
    found = parser.parse_args()
    unknown = set(found.servers.split(",")) - set(SERVERS)
    if unknown:
        parser.error(f"there is no server {', '.join(sorted(unknown))}; there are {', '.join(SERVERS)}")
    return found


def partial_of(given: argparse.Namespace, names: list[str]) -> Partial:
    """What an earlier call with the same settings has left."""
    settings = {
        "commit": commit(), "seconds": given.seconds, "repeats": given.repeats, "servers": names,
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "runs" / f"{key}.jsonl"
    if given.fresh:
        path.unlink(missing_ok=True)
    return Partial.load(path)


def main() -> int:
    given = options()
    missing = need_wrk()
    if missing:
        print(f"cannot run here: {missing}", file=sys.stderr)
        return 3
    names = [name for name in SERVERS if name in given.servers.split(",")]
    left_out: dict[str, str] = {}
    pythons = environments(names, given.envs.resolve(), left_out)
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        run = Run(
            seconds=given.seconds, repeats=given.repeats, partial=partial_of(given, names),
            pythons=pythons, folder=Path(folder), left_out=left_out,
        )  # fmt: skip
        run.everything()
        result = run.result()
    show(result)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    if given.plot:
        draw(result, given.plot)
    if not run.left_out:
        run.partial.path.unlink(missing_ok=True)
    return 1 if any(name.startswith("cotenant") for name in run.left_out) else 0


if __name__ == "__main__":
    sys.exit(main())
