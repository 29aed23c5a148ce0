#!/usr/bin/env bash
# Fuzzes what reads files that others wrote, with libFuzzer, as root (it installs clang).
#   tests/fuzz.sh [SECONDS [TARGET ...]]     SECONDS for each target, 60 unless told; all targets
# What it finds lies in build/fuzz/findings, with what it learned in build/fuzz/corpus. Ends with 1
# when a target crashed, leaked, took more than 2 GB or more than 10 s for one input.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
[[ $seconds =~ ^[0-9]+$ ]] || { echo "usage: tests/fuzz.sh [SECONDS [TARGET ...]]" >&2; exit 2; }
shift || true
targets=("$@")
if ((${#targets[@]} == 0)); then
  for folder in tests/fuzz/corpus/*/; do targets+=("$(basename "$folder")"); done
fi

deploy/install-deps.sh --fuzz
[[ -f build/fuzz/build.ninja ]] || cmake --preset fuzz >/dev/null
cmake --build build/fuzz --target "${targets[@]/#/fuzz_}"
mkdir -p build/fuzz/findings
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
code=0
for target in "${targets[@]}"; do
  mkdir -p "build/fuzz/corpus/$target"
  log=build/fuzz/$target.log
  verdict="nothing found"
  words=()  # that libFuzzer should try
  [[ -f tests/fuzz/dictionary/$target ]] && words=(-dict="tests/fuzz/dictionary/$target")
  build/fuzz/tests/fuzz_"$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -max_len=65536 -print_final_stats=1 -artifact_prefix="build/fuzz/findings/$target-" "${words[@]}" \
    "build/fuzz/corpus/$target" "tests/fuzz/corpus/$target" >"$log" 2>&1 || { verdict="FOUND, see $log"; code=1; }
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  peak=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
  echo "$target: ${runs:-?} executions, peak ${peak:-?} MB: $verdict"
done
exit "$code"
