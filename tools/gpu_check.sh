#!/usr/bin/env bash
# All checks that need a GPU; needs no network and no data.
#
#   bash tools/gpu_check.sh [--short] [pytest's options]
#
# Each file of tests/gpu runs in a process of its own, so that none is harmed by another's crash; its
# numbers and results are in work_dirs/gpu_check/NAME.xml. --short takes small detectors. It uses .venv if
# it exists, otherwise the active python (PYTHON=… names another), with this checkout's code and
# PYTHONPATH. The exit code says whether all checks passed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
default=python3
[ ! -x .venv/bin/python ] || default=.venv/bin/python
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export CUBLAS_WORKSPACE_CONFIG="${CUBLAS_WORKSPACE_CONFIG:-:4096:8}"  # matrix products that repeat
if [ "${1-}" = --short ]; then
    export GPU_CHECK_SHORT=1
    shift
fi
failed=0
for name in ops numbers training runs costs; do  # the most telling first
    "${PYTHON:-$default}" -m pytest "tests/gpu/test_$name.py" -v -s -rs -p no:cacheprovider \
        --junitxml="work_dirs/gpu_check/$name.xml" "$@" || failed=1
done
exit $failed
