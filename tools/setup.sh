#!/usr/bin/env bash
# Install mmdet_sssd and what it needs: into .venv, made if need be, or into the active environment.
#
#   bash tools/setup.sh             use .venv in this checkout
#   bash tools/setup.sh --active    use the virtual or conda environment that is active now
#
# PYTHON=python3.12 bash tools/setup.sh chooses the Python that .venv is made with. To use a torch
# build of your own choice, install it first; setup.sh keeps it. Run again, it takes seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1m[setup]\033[0m %s\n' "$*"; }
fail() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }
pinned() { sed -n "s/^#: \($1==.*\)/\1/p" requirements.txt; }

case "${1:-}" in
    '') active=no ;;
    --active) active=yes ;;
    *) fail "unknown argument $1; accepted: --active, or nothing" ;;
esac

if [ "$active" = yes ]; then
    [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] ||
        fail '--active, but no virtual or conda environment is active; activate one, or leave --active out'
else
    base_python="${PYTHON:-python3}"
    command -v "$base_python" >/dev/null || fail "there is no $base_python; install Python 3.11 or 3.12"
    if [ ! -x .venv/bin/python ]; then
        say "making .venv with $("$base_python" --version)"
        "$base_python" -m venv .venv || fail 'python -m venv failed; on Debian: apt install python3-venv'
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate
fi
python -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$(python --version) is too old; 3.10 is the least, 3.11 and 3.12 are tested"

prefix="$(python -c 'import sys; print(sys.prefix)')"
log="$prefix/mmdet_sssd-setup.log"

has_ops() {  # whether mmcv's ops load with the torch that is there, and work
    python -W ignore - >/dev/null 2>&1 <<'PY'
import torch
from mmcv.ops import nms
for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
    boxes, scores = torch.tensor([[0., 0., 1., 1.]], device=device), torch.ones(1, device=device)
    assert len(nms(boxes, scores, .5)[1]) == 1
PY
}

install_torch() {
    if python -c 'import torch' 2>/dev/null; then
        say "keeping torch $(python -c 'import torch; print(torch.__version__)')"
    else
        say "installing $(pinned torch) (large)"
        pip install -q "$(pinned torch)"
    fi
}

build_mmcv() {  # from source, with ops, against the torch that is there; about 10 minutes on 2 cores
    local started=$SECONDS step status=0
    MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(python -c 'import os; print(os.cpu_count())')}" \
        pip install -v --no-build-isolation --no-deps --force-reinstall "$(pinned mmcv)" >"$log" 2>&1 &
    local pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 5
        step="$(grep -oE '^ *\[[0-9]+/[0-9]+\]' "$log" | tail -n 1 | tr -d ' ' || true)"
        if [ $(((SECONDS - started) % 30)) -lt 5 ]; then
            say "  mmcv: ${step:-preparing}, $((SECONDS - started)) s"
        fi
    done
    wait "$pid" || status=$?
    [ "$status" = 0 ] || { tail -n 20 "$log" >&2; fail "building mmcv failed; the whole log is $log"; }
}

install_mmcv() {
    has_ops && return
    command -v c++ >/dev/null || command -v g++ >/dev/null ||
        fail 'mmcv has to be compiled and there is no C++ compiler; on Debian: apt install g++ python3-dev'
    say "installing $(pinned mmcv) with compiled ops (about 10 minutes on 2 cores, once)"
    build_mmcv
    if ! has_ops; then  # a wheel without ops, or for another torch, came out of pip's cache
        say "the cached $(pinned mmcv) has no ops for this torch; building it anew"
        pip cache remove mmcv >/dev/null 2>&1 || true
        build_mmcv
        has_ops || fail "mmcv was built, but its ops do not load; the whole log is $log"
    fi
}

install_requirements() {
    pip install -q 'setuptools>=77,<81' wheel ninja psutil
    install_torch
    say 'installing the packages of requirements.txt'
    pip install -q -r requirements.txt
    pip install -q --no-deps "$(pinned openmim)"
    install_mmcv
}

fingerprint() { cat "$@" | python -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'; }

stamp="$prefix/mmdet_sssd-setup.stamp"
requirements="$(fingerprint requirements.txt tools/setup.sh)"
sources="$(find mmdet_sssd mmdet_sssd_cli configs tools docs/detectors.md pyproject.toml model-index.yml -name __pycache__ -prune -o -type f -print | sort | xargs cat | fingerprint -)"
if [ "$(sed -n 1p "$stamp" 2>/dev/null)" != "$requirements" ] || ! has_ops; then
    rm -f "$stamp"
    install_requirements
fi
if [ "$(sed -n 2p "$stamp" 2>/dev/null)" != "$sources" ]; then
    say 'installing mmdet_sssd'
    pip install -q --no-deps --no-build-isolation .
    rm -rf build ./*.egg-info
fi
(cd "$prefix" && python -W ignore -c 'import mmdet_sssd') || fail 'mmdet_sssd does not import; see above'
printf '%s\n%s\n' "$requirements" "$sources" >"$stamp"
if [ "$active" = yes ]; then
    say 'ready'
else
    say 'ready; `. .venv/bin/activate` gives you python and mim'
fi
