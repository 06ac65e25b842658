#!/usr/bin/env bash
# Measures one device and records what co-running does on it; see record.py. No network is needed.
#   experiments/gpu/run.sh [--out DIR]           on a machine with CUDA torch: under 9 minutes, into data/<gpu>/
#   experiments/gpu/run.sh --dry-run [--out DIR] the same with small models on the CPU, into a temporary folder
# Packages: torch >= 2.10, numpy, msgspec (a wheel in ./wheels is used where it is not installed).
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
if ! "$PYTHON" -c "import msgspec" 2>/dev/null; then
  "$PYTHON" -m pip install -q --no-index --find-links wheels msgspec
fi
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" experiments/gpu/record.py "$@"
