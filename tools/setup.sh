#!/usr/bin/env bash
# Install mmdet_sssd and its dependencies into .venv, created if needed, or into the active environment.
#
#   bash tools/setup.sh             use .venv in this checkout
#   bash tools/setup.sh --active    use the active virtual or conda environment
#   bash tools/setup.sh --cpu       ignore GPUs; also with the others
#   bash tools/setup.sh --onedl     OneDL's packages instead of OpenMMLab's; also with the others
#
# PYTHON=python3.12 bash tools/setup.sh chooses the Python for .venv. To use your own torch build, install
# it first; setup.sh keeps it. A second run takes seconds.
#
# If there is a GPU, mmcv's ops are compiled for it, with the compiler of torch's CUDA version from pip
# (CUDA_HOME=… names another). FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 does so on a machine without a GPU,
# for GPUs of that compute capability. The wheel is kept in the environment's wheels/; other machines with
# the same torch, Python and kind of GPU install it with PIP_FIND_LINKS=DIR, without a compiler. A wheel
# of mmcv from an index named by PIP_EXTRA_INDEX_URL is taken likewise, if its ops work.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1m[setup]\033[0m %s\n' "$*"; }
fail() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }
pinned() { sed -n "s/^#: \($1==.*\)/\1/p" requirements.txt; }

active=no cpu=no onedl=no
for argument in "$@"; do
    case "$argument" in
        --active) active=yes ;;
        --cpu) cpu=yes ;;
        --onedl) onedl=yes ;;
        *) fail "unknown argument $argument; accepted: --active, --cpu, --onedl, or nothing" ;;
    esac
done
openmmlab_names='mmengine mmcv mmdet openmim' onedl_names='onedl-mmengine onedl-mmcv onedl-mmdetection onedl-mim'
if [ "$onedl" = yes ]; then
    mmcv=onedl-mmcv mim=onedl-mim others="$openmmlab_names"
else
    mmcv=mmcv mim=openmim others="$onedl_names"
fi

if [ "$active" = yes ]; then
    [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] ||
        fail '--active needs an active virtual or conda environment; activate one, or drop --active'
else
    base_python="${PYTHON:-python3}"
    command -v "$base_python" >/dev/null || fail "$base_python not found; install Python 3.11 or 3.12"
    if [ ! -e .venv/bin/activate ]; then
        say "making .venv with $("$base_python" --version)"
        "$base_python" -m venv .venv || fail 'python -m venv failed; on Debian: apt install python3-venv'
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate
fi
python -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$(python --version) is too old; accepted: 3.10 or later (tested: 3.11 and 3.12)"
[ "$onedl" = yes ] || python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' ||
    fail "mmcv cannot be built with $(python --version); accepted: 3.10 to 3.12 (remove .venv and set PYTHON=python3.12, or activate such an environment)"

installed() {  # which of the packages there are
    python -c 'import sys; from importlib.metadata import distributions
print(*{x.name for x in distributions()} & set(sys.argv[1:]))' "$@"
}
# shellcheck disable=SC2086
[ -z "$(installed $others)" ] ||
    fail "there are packages of the other family, which has the same modules: \`pip uninstall -y $(installed $openmmlab_names $onedl_names)\` removes both, or use another environment"

prefix="$(python -c 'import sys; print(sys.prefix)')"
log="$prefix/mmdet_sssd-setup.log"

gpu_archs() {  # compute capabilities of the GPUs, such as 8.0;9.0; empty without GPUs
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
        grep -xE ' *[0-9]+\.[0-9]+ *' | sort -u | paste -sd';' | tr -d ' ' || true
}

archs=''  # GPUs to compile mmcv's ops for; empty: CPU only
if [ "$cpu" = yes ]; then
    export CUDA_VISIBLE_DEVICES=''
    unset FORCE_CUDA
elif [ "${FORCE_CUDA:-0}" = 1 ]; then
    archs="${TORCH_CUDA_ARCH_LIST:-$(gpu_archs)}"
    [ -n "$archs" ] ||
        fail 'FORCE_CUDA=1 needs TORCH_CUDA_ARCH_LIST: 8.0 for A100, 9.0 for H100, …'
else
    archs="$(gpu_archs)"
    [ -n "$archs" ] || ! nvidia-smi -L 2>/dev/null | grep ^GPU >/dev/null ||
        fail "nvidia-smi does not show the GPU's compute capability; set FORCE_CUDA=1 and TORCH_CUDA_ARCH_LIST (8.0 for A100, 9.0 for H100, …), or use --cpu"
fi

has_ops() {  # whether mmcv's ops load with the installed torch, and work, also on the GPU
    ARCHS="$archs" python -W ignore - >/dev/null 2>&1 <<'PY'
import os
import torch
from mmcv.ops import get_compiling_cuda_version, nms
assert not os.environ['ARCHS'] or get_compiling_cuda_version() != 'not available'
for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
    boxes, scores = torch.tensor([[0., 0., 1., 1.]], device=device), torch.ones(1, device=device)
    assert len(nms(boxes, scores, .5)[1]) == 1
PY
}

install_torch() {
    if python -W ignore -c 'import torch' 2>/dev/null; then
        say "keeping torch $(python -W ignore -c 'import torch; print(torch.__version__)')"
    else
        say "installing $(pinned torch) (large)"
        pip install -q "$(pinned torch)"
    fi
}

check_torch_sees_gpu() {
    local torch
    torch="$(python -W ignore -c 'import torch; print(torch.__version__)')"
    python -W ignore -c 'import sys, torch; sys.exit(not torch.version.cuda)' ||
        fail "there is a GPU, but torch $torch is built without CUDA; uninstall it and run setup.sh again, install the build for your driver from pytorch.org, or use --cpu"
    [ "${FORCE_CUDA:-0}" = 1 ] || python -W ignore -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        fail "torch $torch cannot use the GPU: its CUDA $(torch_cuda) needs a newer driver than $(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1); update the driver, install a torch for an older CUDA (pytorch.org), or use --cpu"
}

torch_cuda() { python -W ignore -c 'import torch; print(torch.version.cuda)'; }

install_cuda_compiler() {  # nvcc for torch's CUDA, from pip, beside the headers and libraries of torch
    [ -z "${CUDA_HOME:-}" ] || return 0
    local cuda
    cuda="$(torch_cuda)"
    say "installing the compiler of CUDA $cuda, torch's version"
    pip install -q "cuda-toolkit[nvcc,cccl]==$cuda.*" || true
    CUDA_HOME="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu${cuda%%.*}"
    export CUDA_HOME
    [ -x "$CUDA_HOME/bin/nvcc" ] && [ -e "$CUDA_HOME/include/cusparse.h" ] ||
        fail "pip has no complete compiler of CUDA $cuda (only of CUDA 13); install that toolkit and set CUDA_HOME to its folder, install a torch for CUDA 13, or use --cpu"
    ln -sf "$(basename "$CUDA_HOME"/lib/libcudart.so.*)" "$CUDA_HOME/lib/libcudart.so"
}

build_mmcv() {  # from source, with ops, for the installed torch; about 10 minutes on 2 cores
    local started=$SECONDS step status=0 cache=''
    [ -z "$archs" ] || cache=--no-cache-dir  # pip's cache mixes up wheels for GPUs and others
    rm -rf "$prefix/wheels"
    MMCV_WITH_OPS=1 FORCE_CUDA="$([ -z "$archs" ] || echo 1)" TORCH_CUDA_ARCH_LIST="$archs" \
        MAX_JOBS="${MAX_JOBS:-$(python -c 'import os; print(os.cpu_count())')}" \
        pip wheel -v $cache --no-binary "$mmcv" --no-build-isolation --no-deps -w "$prefix/wheels" \
        "$(pinned "$mmcv")" >"$log" 2>&1 &
    local pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 5
        step="$(grep -oE '^ *\[[0-9]+/[0-9]+\]' "$log" | tail -n 1 | tr -d ' ' || true)"
        if [ $(((SECONDS - started) % 30)) -lt 5 ]; then
            say "  mmcv: ${step:-preparing}, $((SECONDS - started)) s"
        fi
    done
    wait "$pid" || status=$?
    [ "$status" = 0 ] || { tail -n 20 "$log" >&2; fail "building mmcv failed; full log: $log"; }
    pip install -q --no-deps --force-reinstall "$prefix"/wheels/*mmcv-*.whl
}

install_mmcv() {
    has_ops && return
    # an available wheel; OpenMMLab's wheels of versions that mmdet accepts end at torch 2.1, which does
    # not work with NumPy 2
    if pip install -q --no-deps --force-reinstall --only-binary "$mmcv" "$(pinned "$mmcv")" 2>/dev/null && has_ops; then
        say "installed an available wheel of $(pinned "$mmcv")"
        return
    fi
    command -v c++ >/dev/null || command -v g++ >/dev/null ||
        fail 'mmcv must be compiled, but there is no C++ compiler; on Debian: apt install g++ python3-dev'
    if [ -n "$archs" ]; then
        install_cuda_compiler
        say "compiling $(pinned "$mmcv") for GPUs of compute capability $archs (about 90 core-minutes, once)"
    else
        say "installing $(pinned "$mmcv") with compiled ops (about 10 minutes on 2 cores, once)"
    fi
    build_mmcv
    has_ops && return
    if [ -z "$archs" ]; then  # pip's cache had a wheel without ops, or for another torch
        say "the cached $(pinned "$mmcv") has no ops for this torch; building it again"
        pip cache remove "$mmcv" >/dev/null 2>&1 || true
        build_mmcv
        has_ops && return
    fi
    fail "mmcv was built, but its ops do not load; full log: $log"
}

install_requirements() {
    pip install -q 'setuptools>=77,<81' wheel ninja psutil
    install_torch
    [ -z "$archs" ] || check_torch_sees_gpu
    say 'installing the packages of requirements.txt'
    if [ "$onedl" = yes ]; then
        grep -vE '^mm(engine|det)==' requirements.txt |
            pip install -q -r /dev/stdin "$(pinned onedl-mmengine)"
        pip install -q --no-deps --no-build-isolation "$(pinned onedl-mmdetection)" "$(pinned imaug)"
    else
        pip install -q -r requirements.txt
    fi
    pip install -q --no-deps "$(pinned "$mim")"
    python -c 'import cv2' || fail 'OpenCV does not load; on Debian: apt install libgl1 libglib2.0-0'
    install_mmcv
}

fingerprint() { cat "$@" | python -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'; }

stamp="$prefix/mmdet_sssd-setup.stamp"
requirements="$mmcv $(fingerprint requirements.txt tools/setup.sh)"
sources="$(find mmdet_sssd mmdet_sssd_cli configs tools docs/detectors.md pyproject.toml model-index.yml -name __pycache__ -prune -o -type f -print | sort | xargs cat | fingerprint -)"
if [ "$(sed -n 1p "$stamp" 2>/dev/null)" != "$requirements" ] || ! has_ops; then
    rm -f "$stamp"
    install_requirements
fi
if [ "$(sed -n 2p "$stamp" 2>/dev/null)" != "$sources" ]; then
    say 'installing mmdet_sssd'
    pip install -q --no-deps --no-build-isolation .
    rm -rf build ./*.egg-info
    # OneDL's mim looks for configs in the folder of the first installed file, else the command's
    record="$(python -c 'from importlib.metadata import files
print(next(x.locate() for x in files("mmdet_sssd") if x.name == "RECORD"))')"
    { grep '^mmdet_sssd/' "$record" && grep -v '^mmdet_sssd/' "$record"; } >"$record.new"
    mv "$record.new" "$record"
fi
(cd "$prefix" && python -W ignore -c 'import mmdet_sssd') || fail 'mmdet_sssd does not import; see above'
printf '%s\n%s\n' "$requirements" "$sources" >"$stamp"
if [ "$active" = yes ]; then
    say 'ready'
else
    say 'ready; `. .venv/bin/activate` gives you mmdet-sssd, python and mim'
fi
