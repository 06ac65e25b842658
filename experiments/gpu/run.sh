#!/usr/bin/env bash
# Measures one device and records what co-running does on it; see record.py. No network is needed.
#   experiments/gpu/run.sh [--out DIR]           on a machine with CUDA torch: under 9 minutes, into data/<gpu>/
#   experiments/gpu/run.sh --dry-run [--out DIR] the same with small models on the CPU, into a temporary folder
# Packages: torch >= 2.10, numpy, msgspec (a wheel in ./wheels is used where it is not installed), zstandard or
# pyarrow; better with cuda-bindings (partitions), nvidia-ml-py (clocks, counters), matplotlib (the pictures of the
# summary) and onnx, onnxruntime, ml_dtypes, prometheus-client (the policies run on the server's own engine).
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
if ! "$PYTHON" -c "import msgspec" 2>/dev/null; then
  "$PYTHON" -m pip install -q --no-index --find-links wheels msgspec
fi
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
status=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$PYTHON" experiments/gpu/record.py "$@" | tee "$log" || status=$?
out=$(sed -n 's/^results in //p' "$log")
if [ -n "$out" ] && "$PYTHON" -c "import matplotlib" 2>/dev/null; then
  "$PYTHON" experiments/gpu/summary.py "$out"
fi
exit "$status"
