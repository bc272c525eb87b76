#!/bin/sh
# Builds the native CPU kernels with sanitizers, beside the plain ones, and runs their tests on them.
# usage: sanitize.sh [pytest's words]     Without a compiler that has the sanitizers nothing is run, and that is said.
set -eu
cd "$(dirname "$0")/.."
build=build/sanitized
python=.venv/bin/python

say() { echo "sanitize: $*" >&2; }
cached() { sed -n "s/^$1:[A-Z]*=//p" "$build/CMakeCache.txt"; }

mkdir -p build
PATH=$PATH:$(pwd)/.venv/bin
command -v cmake >/dev/null 2>&1 || "$python" -m pip install --disable-pip-version-check --quiet cmake ninja
best='from oneroof.ops.cpu import library; found = library.native(); print(found.variant if found else "")'
best=$(ONEROOF_CPU=auto "$python" -c "$best")  # with the least, every way through the kernels that can be run here
case $best in '' | avx2) variants=avx2 ;; *) variants="avx2;$best" ;; esac
generator=
command -v ninja >/dev/null 2>&1 && generator='-GNinja'
[ -f "$build/CMakeCache.txt" ] && generator=  # as the first time
cmake -S . -B "$build" ${generator:+"$generator"} -DSANITIZE=address,undefined \
    "-DVARIANTS=$variants" >"$build.log" 2>&1 ||
    { cat "$build.log" >&2; exit 2; }
if grep -q '^not built' "$build/native.txt"; then
    say "the native CPU kernels are $(cat "$build/native.txt")"
    exit 0
fi
preload=
for library in libasan.so libubsan.so libstdc++.so; do  # the last because torch throws: the sanitizer has to find it first
    found=$("$(cached CMAKE_CXX_COMPILER)" "-print-file-name=$library")
    [ -e "$found" ] || { say "$(cached CMAKE_CXX_COMPILER) comes without $library; nothing was run"; exit 0; }
    preload="$preload $found"
done
say "compiling"
cmake --build "$build" --parallel 2 >"$build.log" 2>&1 || { cat "$build.log" >&2; exit 2; }

export LD_PRELOAD="$preload" ONEROOF_CPU_LIBRARY="$(pwd)/$build/liboneroof_cpu.so"
export ASAN_OPTIONS=detect_leaks=0:exitcode=99 UBSAN_OPTIONS=print_stacktrace=1  # Python frees little at its end
# Long texts go the same ways as short ones, and would take an hour here.
exec "$python" -m pytest -q -m "not slow" -k "not however_it_is_cut" tests/ops/cpu "$@"
