#!/usr/bin/env bash
# Measures one device and records what co-running does on it; see record.py. No network is needed.
#   experiments/gpu/run.sh [--out DIR]           on a machine with CUDA torch: under 9 minutes, into data/<gpu>/
#   experiments/gpu/run.sh --dry-run [--out DIR] the same with small models on the CPU, into a temporary folder
# Packages: torch >= 2.10, numpy, msgspec (a wheel in ./wheels is used where it is not installed), zstandard or
# pyarrow; better with cuda-bindings (partitions), nvidia-ml-py (clocks, counters), matplotlib (the pictures of the
# summary) and onnx, onnxruntime, ml_dtypes, prometheus-client (the policies run on the server's own engine).
# Ctrl-C ends it early; what was measured by then is written.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [ -z "${PYTHON:-}" ]; then
  if [ -x "$root/.venv/bin/python" ]; then PYTHON=$root/.venv/bin/python; else PYTHON=python3; fi
fi
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
if ! "$PYTHON" -c "import msgspec" 2>/dev/null; then
  # not into the machine's own packages: they may be read-only, or managed by the system
  if ! "$PYTHON" -m pip install -q --no-index --no-deps --target "$temporary/packages" "$root"/wheels/msgspec-*.whl; then
    echo "msgspec is not installed, and $root/wheels has no wheel of it for $("$PYTHON" -V); put one there" >&2
    exit 2
  fi
  export PYTHONPATH="$PYTHONPATH:$temporary/packages"
fi
status=0
trap : INT TERM # the recording hears of these itself, writes what it has, and ends
"$PYTHON" "$root/experiments/gpu/record.py" "$@" > >(trap '' INT TERM; exec tee "$temporary/log") || status=$?
wait
out=$(sed -n 's/^results in //p' "$temporary/log" | tail -n 1)
if [ -n "$out" ]; then
  if "$PYTHON" -c "import matplotlib" 2>/dev/null; then
    "$PYTHON" "$root/experiments/gpu/summary.py" "$out" || status=$((status ? status : 1))
  else
    echo "no summary: matplotlib is not installed here; where it is: python experiments/gpu/summary.py $out" >&2
  fi
fi
exit "$status"
