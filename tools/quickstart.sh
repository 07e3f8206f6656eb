#!/usr/bin/env bash
# From nothing to a self-distilled detector in minutes: installs everything; then `mmdet-sssd quickstart`
# draws a small data set, trains an SSSD detector on it from scratch, evaluates it and draws its
# predictions.
#
#   bash tools/quickstart.sh [--active] [--cpu]    (see setup.sh; everything goes to work_dirs/quickstart)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh "$@"
# shellcheck disable=SC1091
[[ " $* " = *' --active '* ]] || . .venv/bin/activate
mmdet-sssd quickstart
