#!/usr/bin/env bash
# Set up if needed, lint and test: bash tools/test.sh [--active] [--cpu] (see setup.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh "$@"
# shellcheck disable=SC1091
[[ " $* " = *' --active '* ]] || . .venv/bin/activate
ruff check .
ruff format --check .
OMP_NUM_THREADS=1 python -m pytest -n logical --dist worksteal
