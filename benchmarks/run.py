"""`make bench`: every benchmark in turn, one table of figures against targets at the end.

    python benchmarks/run.py [--only decision_time,peers_echo] [--quick] [--save]

`--save` keeps each part's JSON under `benchmarks/results/`; otherwise they go to a temporary folder. A part
that cannot run here (no wrk, peers that cannot be installed) says why and stops none of the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, Row, note, table

HERE = Path(__file__).resolve().parent
PARTS: dict[str, tuple[list[str], list[str]]] = {
    "decision_time": ([], ["--requests", "2000", "--repeats", "1"]),
    "decision_cost": ([], ["--requests", "1500", "--repeats", "1"]),
    "simulator_speed": ([], ["--seconds", "10", "--repeats", "1"]),
    "peers_echo/run": ([], ["--seconds", "1", "--repeats", "1"]),
    "grpc_cost": ([], ["--seconds", "1", "--repeats", "1"]),
    "switch_interval": ([], ["--seconds", "2", "--repeats", "1"]),
    "prediction_cost": ([], ["--repeats", "2", "--steps", "200000"]),
    "calibration": ([], ["--seeds", "2"]),
    "observing_cost": ([], ["--requests", "4000", "--repeats", "2"]),
    "sim_vs_live": ([], ["--seconds", "2", "--repeats", "2"]),
}
"""Part -> (options of a full run, of a quick one)."""
CANNOT_RUN = 3
"""Exit status by which a part says that it cannot run here; the reason is its last line on stderr."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--quick", action="store_true", help="short settings, to see that everything runs")
    parser.add_argument("--save", action="store_true", help="keep the results in benchmarks/results/")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else [name.partition("/")[0] for name in PARTS]
    unknown = set(wanted) - {name.partition("/")[0] for name in PARTS}
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    results = HERE / "results" if options.save else Path(tempfile.mkdtemp(prefix="cotenant-bench-"))
    results.mkdir(exist_ok=True)
    rows: list[Row] = []
    crashed = False
    for part, (full, quick) in PARTS.items():
        name = part.partition("/")[0]
        if name not in wanted:
            continue
        note(f"== {name}")
        out = results / f"{name}.json"
        command = [sys.executable, str(HERE / f"{part}.py"), "--json", str(out)]
        done = subprocess.run([*command, *(quick if options.quick else full)], cwd=ROOT, check=False)
        if done.returncode == 0:
            rows += [Row(**figure) for figure in json.loads(out.read_text())["figures"]]
        elif done.returncode == CANNOT_RUN:
            rows.append(Row(name, "cannot run here (see above)"))
        else:
            crashed = True
            rows.append(Row(name, f"failed with status {done.returncode}"))
    table("all figures", rows)
    note(f"results in {results}")
    return int(crashed)


if __name__ == "__main__":
    sys.exit(main())
