#!/usr/bin/env bash
# All checks that need a GPU, in one table and one JSON file; needs no network and no data.
#
#   bash tools/gpu_check.sh [--short] [--out DIR] [--groups ops,numbers,…] [--minutes 8]
#
# It uses .venv if it exists, otherwise the active python (PYTHON=… names another), with this checkout's
# code and PYTHONPATH. The exit code says whether all checks passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
default=python3
[ ! -x .venv/bin/python ] || default=.venv/bin/python
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export CUBLAS_WORKSPACE_CONFIG="${CUBLAS_WORKSPACE_CONFIG:-:4096:8}"  # matrix products that repeat
exec "${PYTHON:-$default}" -W ignore -m tests.gpu "$@"
