#!/usr/bin/env bash
# Builds everything and runs every test, as root, on a fresh machine too. May be repeated.
#   tests/run.sh                 the release build, all tests
#   tests/run.sh asan|tsan       the tests labelled small under that sanitizer preset
# Tests that need ../shared/data or a GPU say so and skip where there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:-release}
case $preset in
  release) build=build; target=all; select=() ;;
  asan | tsan | debug) build=build/$preset; target=small_tests; select=(-L small) ;;
  *) echo "usage: tests/run.sh [release|debug|asan|tsan]" >&2; exit 2 ;;
esac

deploy/install-deps.sh --tests
[[ -f $build/build.ninja ]] || cmake --preset "$preset" >/dev/null
if [[ $preset == release ]] && { command -v nvcc || command -v /usr/local/cuda/bin/nvcc; } >/dev/null \
  && ! grep -q kernels/cuda/tape.cc "$build/build.ninja"; then
  echo "tests/run.sh: a CUDA toolkit is here, but $build was configured without the CUDA backend" >&2
  exit 1
fi
cmake --build "$build" --target "$target"

export ASAN_OPTIONS=detect_leaks=1:abort_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=suppressions=$PWD/tests/tsan.supp:ignore_noninstrumented_modules=1:second_deadlock_stack=1
log=$(mktemp)
trap 'rm -f "$log"' EXIT
code=0
ctest --test-dir "$build" -j "$(nproc)" --output-on-failure --timeout 900 "${select[@]}" --verbose >"$log" 2>&1 || code=$?
((code == 0)) || grep -vE '^[0-9]+: \[ +(OK|RUN) ' "$log" | tail -n 400
echo "skipped:"
# The line that a test prints after a skip, among those of tests that ran beside it.
awk '/^[0-9]+: .*: Skipped$/ {skip[$1] = 1; next} skip[$1] {skip[$1] = 0; print}' "$log" |
  sort -u | sed 's/^[0-9]*:/ /' | grep . || echo "  nothing"
sed -n '/tests passed\|tests failed/,$p' "$log"
exit "$code"
