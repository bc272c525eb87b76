#!/bin/sh
# Makes .venv in this project's folder: torch first, in a step of its own, then oneroof itself (editable).
# usage: environment.sh core|test     PYTHON names the interpreter, TORCH_INDEX the index to take torch from.
# A second run returns at once unless pyproject.toml or this script has changed.
set -eu
cd "$(dirname "$0")/.."
want=${1:-core}
torch_range='torch>=2.11,<2.16'  # as in pyproject.toml
cpu_index=https://download.pytorch.org/whl/cpu
python=.venv/bin/python

fail() { echo "environment: $*" >&2; exit 2; }
say() { echo "environment: $*" >&2; }

pip() { "$python" -m pip "$@" --disable-pip-version-check --quiet; }

find_python() {
    set -- "${PYTHON:-python3}"
    [ "$1" = python3 ] && set -- python3 python3.14 python3.13 python3.12 python3.11
    for candidate in "$@"; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        echo "$candidate"
        return
    done
    found=$("${PYTHON:-python3}" -V 2>/dev/null) || found="no ${PYTHON:-python3}"
    fail "found $found; Python 3.11 or newer is needed; install one, or name it: make PYTHON=/path/to/python3.12"
}

make_venv() {
    if [ -x "$python" ] && "$python" -c 'import pip' 2>/dev/null; then return; fi
    base=$(find_python)
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$base has no venv module; it is needed to make .venv; install python3-venv (Debian, Ubuntu)"
    say "making .venv with $("$base" -V)"
    "$base" -m venv --clear .venv
}

has_accelerator() {
    command -v nvidia-smi >/dev/null 2>&1 || command -v npu-smi >/dev/null 2>&1 ||
        [ -e /dev/nvidia0 ] || [ -e /dev/davinci0 ]
}

has_torch() {
    "$python" - 2>/dev/null <<'END'
import importlib.metadata, sys
version = tuple(int(part) for part in importlib.metadata.version("torch").split("+")[0].split(".")[:2])
sys.exit(not (2, 11) <= version < (2, 16))
END
}

install_torch() {
    if has_torch; then return; fi
    if [ -n "${TORCH_INDEX:-}" ]; then
        say "installing torch from $TORCH_INDEX"
        pip install --index-url "$TORCH_INDEX" "$torch_range"
    elif has_accelerator; then
        say "installing torch for this machine's accelerator"
        pip install "$torch_range"
    else
        say "installing torch for the CPU"
        pip install --retries 0 --timeout 10 --index-url "$cpu_index" "$torch_range" 2>/dev/null || install_plain_torch
    fi
}

# The CPU index could not be reached. The usual index may hold a CPU wheel; what would bring CUDA is refused.
install_plain_torch() {
    plan=$("$python" -m pip install --disable-pip-version-check --dry-run 'torch==2.13.*') ||
        fail "torch could not be found; an index that has torch 2.11 to 2.15 is needed; try TORCH_INDEX=URL make"
    case $plan in
    *nvidia-* | *cuda-*)
        fail "$cpu_index cannot be reached and the usual index would install CUDA packages; try TORCH_INDEX=URL make" ;;
    esac
    pip install 'torch==2.13.*'
}

install_oneroof() {
    say "installing oneroof ($want)"
    if [ "$want" = core ]; then pip install --editable .; else pip install --editable ".[$want]"; fi
}

is_done() { [ -f ".venv/oneroof-$1" ] && [ "$(cat ".venv/oneroof-$1")" = "$key" ]; }

key=$(cat pyproject.toml scripts/environment.sh | cksum)
make_venv
if is_done "$want" || { [ "$want" = core ] && is_done test; }; then exit 0; fi
install_torch
install_oneroof
echo "$key" >".venv/oneroof-$want"
