#!/bin/sh
# Makes .venv in this project's folder: torch first, in a step of its own, then oneroof itself (editable), which
# compiles the native CPU kernels into the source tree where there is a C++ compiler.
# usage: environment.sh core|test|native     PYTHON names the interpreter, TORCH_INDEX the index to take torch from.
# A second run returns at once unless pyproject.toml or this script has changed, or the folder was moved or copied;
# changed C++ is compiled again, and `native` looks whether there is something to compile in any case.
set -eu
cd "$(dirname "$0")/.."
want=${1:-core}
force=
if [ "$want" = native ]; then want=core force=yes; fi
torch_range='torch>=2.11,<2.16'  # as in pyproject.toml
cpu_index=https://download.pytorch.org/whl/cpu
python=.venv/bin/python
here=$(pwd -P)
room=src/oneroof/ops/cpu
build=build/native  # as in pyproject.toml

fail() { echo "environment: $*" >&2; exit 2; }
say() { echo "environment: $*" >&2; }

pip() { "$python" -m pip "$@" --disable-pip-version-check --quiet 2>.venv/pip.log; }
errors() { grep -E ': (fatal )?error: ' "$1" | head -n 10 | sed 's/^ *//' >&2 || true; }  # a compiler's
reason() { echo "$(grep . .venv/pip.log | tail -n 1) (the rest is in .venv/pip.log)"; }

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
    if [ -x "$python" ] && is_ours && "$python" -c 'import pip' 2>/dev/null; then return; fi
    base=$(find_python)
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$base has no venv module; it is needed to make .venv; install python3-venv (Debian, Ubuntu)"
    say "making .venv with $("$base" -V)"
    "$base" -m venv --clear .venv
}

# The programs in a copied .venv still start the Python of the old place.
is_ours() {
    [ -L .venv ] || [ ! -e .venv/bin/pip ] ||
        grep -qF -e "$here/.venv/bin/" -e "$(pwd)/.venv/bin/" .venv/bin/pip
}

# An NPU is none: torch_npu sits on torch for the CPU.
has_gpu() { [ -e /dev/nvidia0 ] || nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

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
        pip install --index-url "$TORCH_INDEX" "$torch_range" ||
            fail "torch could not be installed from $TORCH_INDEX: $(reason)"
    elif has_gpu; then
        say "installing torch for this machine's GPU"
        pip install "$torch_range" || fail "torch could not be installed: $(reason)"
    else
        say "installing torch for the CPU"
        pip install --retries 0 --timeout 10 --index-url "$cpu_index" "$torch_range" || install_plain_torch
    fi
}

# The CPU index did not serve. The usual index may hold a CPU wheel; what would bring CUDA is refused.
install_plain_torch() {
    first=$(reason)
    plan=$("$python" -m pip install --disable-pip-version-check --dry-run 'torch==2.13.*' 2>.venv/pip.log) ||
        fail "torch could not be installed: $(reason); torch 2.11 to 2.15 is needed; try TORCH_INDEX=URL make"
    case $plan in
    *nvidia-* | *cuda-*)
        say "$cpu_index: $first"
        fail "torch was not installed from $cpu_index and the usual index would add CUDA; try TORCH_INDEX=URL make" ;;
    esac
    pip install 'torch==2.13.*' || fail "torch could not be installed: $(reason)"
}

install_oneroof() {
    say "installing oneroof ($want)"
    if [ "$want" = core ]; then set -- .; else set -- ".[$want]"; fi
    keep_objects
    pip install --editable "$1" || { errors .venv/pip.log; fail "oneroof could not be installed: $(reason)"; }
    tell_if_unbuilt
}

# What is installed is this folder, not one that was linked in by hand since.
is_linked() {
    for link in .venv/lib/python*/site-packages/oneroof.pth; do
        if [ -e "$link" ] && ! grep -qxF "$here/src" "$link"; then return 1; fi
    done
}

is_done() { [ -f ".venv/oneroof-$1" ] && [ "$(cat ".venv/oneroof-$1")" = "$key" ] && is_linked; }

# The native kernels were made of the sources as they are now.
is_built() { [ -z "$force" ] && [ -f .venv/oneroof-native ] && [ "$(cat .venv/oneroof-native)" = "$native_key" ]; }
is_unbuilt() { grep -q '^not built' "$room/native.txt" 2>/dev/null; }
tell_if_unbuilt() { if is_unbuilt; then say "the native CPU kernels are $(cat "$room/native.txt"); make native tries again"; fi; }

# A word of CMake's cache: what the last build was made with.
cached() { sed -n "s/^$1:[A-Z]*=//p" "$build/CMakeCache.txt" 2>/dev/null; }

# What was compiled is kept, though the build tool, which lies in another folder of pip's each time, takes that for a
# reason to begin anew. Nothing is kept of another folder, or of a time without a compiler: one may have come since.
keep_objects() {
    if ! is_unbuilt && [ "$(cached CMAKE_HOME_DIRECTORY)" = "$here" ]; then
        rm -f "$build/.skbuild-info.json"
    else
        rm -rf "$build"
    fi
}
is_configured() {
    [ -f "$build/CMakeCache.txt" ] && [ "$(cached CMAKE_HOME_DIRECTORY)" = "$here" ] &&
        [ -x "$(cached CMAKE_COMMAND)" ] && [ -x "$(cached CMAKE_MAKE_PROGRAM)" ]  # pip's own are gone with its folder
}

build_native() {
    keep_objects
    say "compiling the native CPU kernels"
    if is_configured; then
        "$(cached CMAKE_COMMAND)" --build "$build" --parallel 2 >.venv/native.log 2>&1 || {
            errors .venv/native.log
            fail "the native CPU kernels could not be compiled (the rest is in .venv/native.log)"
        }
    else
        pip install --no-deps --editable . ||
            { errors .venv/pip.log; fail "the native CPU kernels could not be compiled: $(reason)"; }
    fi
    tell_if_unbuilt
}

key=$({ cat pyproject.toml scripts/environment.sh; echo "$here"; } | cksum)
make_venv
if command -v flock >/dev/null 2>&1; then exec 9>.venv/lock && flock 9; fi  # two runs at once build one after the other
native_key=$(cat CMakeLists.txt "$room"/*.cpp "$room"/*.h 2>/dev/null | cksum)
if is_done "$want" || { [ "$want" = core ] && is_done test; }; then
    if is_built; then exit 0; fi
    build_native
else
    install_torch
    install_oneroof
    echo "$key" >".venv/oneroof-$want"
fi
echo "$native_key" >.venv/oneroof-native
