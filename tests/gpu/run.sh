#!/usr/bin/env bash
# Everything that needs a GPU, in under 9 minutes, without network: inside an unpacked bundle
# (deploy/bundle.sh --tests) or in a checkout that is built. Goes on after a failure; a summary comes
# last; exit 1 if a stage failed.
#   tests/gpu/run.sh [--only a,b,e] [OUT_DIR]     default: ./gpu-results, files of the same names replaced
#     a  facts about the machine                          facts.txt
#     b  every operation on the device                    tests.log
#     c  the small ones under compute-sanitizer           memcheck.log
#     d  P1 and P2 on the recall and demo checkpoints     tests.log
#     e  a served job: cuda, cuda without graphs, cpu     tests.log
#     f  ceilings of the device and the link              ceilings.json, bench.log
#     g  operations beside the ceilings                   kernels.json, bench.log
#     h  decode steps with offloaded rows                 decode.json, bench.log
# shellcheck disable=SC2317  # stage calls functions by name
set -euo pipefail
export LC_ALL=C

# Seconds; 540 in all.
declare -A limits=([a]=15 [b]=70 [c]=90 [d]=100 [e]=60 [f]=75 [g]=90 [h]=40)
# Under memcheck a kernel takes some 50 times as long. Left out: what runs many or large steps, and
# slices that one kernel stops while another runs.
memcheck_filter='*-*10000Steps*:*LargeTables*:*LongRow*:*PartsOfMore*:*DrawsFollow*:*InChunks*:*InABatch*:*OverSeveralBlocks*:*Stop*:*HasBegun*'
decode=(--shape llama-3.1-8b --layers 4 --context 32768 --batch 1 --budget 2048 --hot-rows 4096
        --predict 'off,on')
# Tokens whose logits lead by 0.1 at least on the cpu, so that rounding does not choose another.
prompt='And Jesus answered and said unto them,' tokens=40

usage() { sed -n '5,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
only=abcdefgh out=gpu-results
while (($#)); do
  case $1 in
    --only) only=${2:-}; [[ $only =~ ^[a-h](,[a-h])*$ ]] || usage; shift ;;
    -*) usage ;;
    *) out=$1 ;;
  esac
  shift
done
root=$(cd "$(dirname "$0")/../.." && pwd)
bin=$root/bin tests=$root/tests
[[ -x $bin/sparsekv ]] || bin=$root/build/bin tests=$root/build/tests
for file in "$bin"/sparsekv{,-gpu-worker} "$tests"/{kernels_cuda,gpu_checkpoint}_test; do
  [[ -x $file ]] || { echo "run.sh: $file is not here" >&2; exit 1; }
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
export SPARSEKV_SOURCE_DIR=$root
rm -f "$out"/summary.txt

work=$(mktemp -d)
server=
stop_hard() {
  [[ ! $server ]] || kill -KILL "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap stop_hard EXIT

# cuBLASLt where the programs do not look: pip's packages have one, for instance.
cublaslt=libcublasLt.so.13
if ! [[ -e $root/lib/$cublaslt || -e /usr/local/cuda/lib64/$cublaslt ]] &&
  ! /sbin/ldconfig -p 2>/dev/null | grep -q "$cublaslt"; then
  found=$(timeout 10 find /usr /opt -name "$cublaslt" -print -quit 2>/dev/null) || true
  [[ ! $found ]] || export LD_LIBRARY_PATH=${found%/*}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
device=$(timeout 30 "$bin/sparsekv-gpu-worker" --probe 2>&1) || true

# ---- what a stage is ----
# A function that prints to its log, sets `line`, the one that matters, and returns 0, $skipped or
# anything else for a failure. No errexit in it.
skipped=77
line='' log='' from=0 stage_end=0 failed=0
output() { tail -c "+$((from + 1))" "$log"; }  # of this stage so far
bounded() { timeout -k 2 "$((stage_end > SECONDS ? stage_end - SECONDS : 1))" "$@"; }
summary() { printf '%-3s %-34s %-5s %5s  %s\n' "$@" | tee -a "$work/summary"; }

stage() {  # LETTER TITLE LOG FUNCTION
  local letter=$1 title=$2 code=0 verdict=pass begin=$SECONDS
  [[ $only == *"$letter"* ]] || return 0
  log=$out/$3 line=''
  [[ -e $work/$3 ]] || : >"$log"  # begun anew once a run
  : >"$work/$3"
  echo "==== $letter: $title" >>"$log"
  from=$(stat -c %s "$log")
  stage_end=$((SECONDS + limits[$letter]))
  if [[ $letter != a && $device != device\ * ]]; then
    line="no device: ${device#none }" code=$skipped
    echo "$line" >>"$log"
  else
    "$4" >>"$log" 2>&1 || code=$?
  fi
  case $code in
    0) ;;
    "$skipped") verdict=skip ;;
    124 | 137) verdict=FAIL line="over its ${limits[$letter]} s: ${line:-$(output | tail -n 1)}" ;;
    *) verdict=FAIL line=${line:-exit $code: $(output | tail -n 1)} ;;
  esac
  [[ $verdict != FAIL ]] || failed=1
  summary "$letter" "$title" "$verdict" "$((SECONDS - begin))" "${line:0:160}"
}

# ---- a ----
facts() {
  date -u +%FT%TZ
  uname -srm
  "$bin/sparsekv" --version
  sed -n 's/^model name.*: //p' /proc/cpuinfo | sort | uniq -c
  head -n 3 /proc/meminfo
  echo "locked memory, KiB: $(ulimit -l); $(ldd --version 2>&1 | head -n 1)"
  find /sys/devices/system/node -maxdepth 1 -name 'node[0-9]*' -printf '%f '; echo
  cat /proc/driver/nvidia/version 2>/dev/null
  nvidia-smi 2>/dev/null
  nvidia-smi -q -d CLOCK,POWER,PERFORMANCE 2>/dev/null | head -n 80
  echo "probe: $device; cuBLASLt: ${found:-where the programs look}"
  line=$(nvidia-smi --query-gpu=name,driver_version,memory.total,pcie.link.gen.max,pcie.link.width.max \
    --format=csv,noheader 2>/dev/null | head -n 1)
  line="${line:-no nvidia-smi}; ${device%%$'\n'*}"
  [[ $device == device\ * ]]
}

# ---- b, c, d ----
gtest() {  # COMMAND...: runs it and says what it said
  local code=0 failures
  bounded "$@" || code=$?
  failures=$(output | sed -n 's/^\[  FAILED  \] \([^ ,]*[/.][^ ,]*\).*/\1/p' | sort -u)
  line=$(output | sed -n 's/^\[  PASSED  \] //p' | tail -n 1)
  [[ ! $failures ]] || line="$line FAILED: $(wc -l <<<"$failures"), $(head -n 3 <<<"$failures" | tr '\n' ' ')"
  [[ $code != 0 || $line ]] || { line='no result'; code=1; }
  [[ $code != 0 || $line != 0\ * ]] || { line=$(output | grep -m 1 -iE 'no cuda|nothing is tested|skipped'); code=$skipped; }
  return "$code"
}
operations() { gtest "$tests/kernels_cuda_test" --gtest_brief=1; }
memcheck() {
  local tool code=0 verdict
  tool=$(command -v compute-sanitizer) || tool=/usr/local/cuda/bin/compute-sanitizer
  [[ -x $tool ]] || { line='no compute-sanitizer here'; return "$skipped"; }
  # One case asks for more memory than there is, and is told so.
  gtest "$tool" --tool memcheck --report-api-errors no --error-exitcode 99 \
    "$tests/kernels_cuda_test" --gtest_brief=1 \
    --gtest_filter="$memcheck_filter" || code=$?
  verdict=$(output | sed -n 's/^=* ERROR SUMMARY/ERROR SUMMARY/p' | tail -n 1)
  line="${verdict:-no verdict}; $line"
  [[ $verdict || $code != 0 ]] || code=1
  return "$code"
}
checkpoints() {
  local code=0 agreement
  gtest "$tests/gpu_checkpoint_test" || code=$?
  agreement=$(output | sed -n 's/.*top-1 agreement.* \([0-9.]*\) % of.*/\1/p' | tr '\n' ' ')
  [[ ! $agreement ]] || line+=" Agreement with cpu: $agreement%"
  return "$code"
}

# ---- e ----
serve() {  # OPTION...: sets $server and $address
  : >"$work/ready"
  "$bin/sparsekv" serve --model "$root/deploy/demo" --host-memory 512M --grpc 127.0.0.1:0 --http 127.0.0.1:0 \
    "$@" >"$work/ready" &
  server=$!
  until grep -q '^ready ' "$work/ready"; do
    kill -0 "$server" 2>/dev/null && ((SECONDS < stage_end)) || return 1
    sleep 0.1
  done
  address=$(sed -n 's/^ready grpc=\([^ ]*\).*/\1/p' "$work/ready")
}
stop() {  # the server's exit code
  local code=0 i
  [[ $server ]] || return 0
  kill -TERM "$server" 2>/dev/null
  for ((i = 0; i < 350 && SECONDS < stage_end + 5; ++i)); do
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$server" 2>/dev/null
  wait "$server" || code=$?
  server=
  return "$code"
}
job() {  # NAME OPTION...: serves, asks, stops
  local name=$1 code=0
  shift
  echo "-- $name"
  serve "$@" || { stop; line="$name: not ready: $(output | tail -n 1)"; return 1; }
  bounded "$bin/sparsekv" generate --grpc "$address" --prompt "$prompt" --max-tokens "$tokens" --json >"$work/$name" ||
    { stop; line="$name: no answer: $(output | tail -n 1)"; return 1; }
  cat "$work/$name"
  stop || { code=$?; line="$name: exit $code after SIGTERM"; return 1; }
}
ids() { sed -n 's/.*"token_ids":\[\([0-9,]*\)\].*/\1/p' "$work/$1" | tr ',' '\n'; }
text() { sed -n 's/.*"text":"\(.*\)","token_ids".*/\1/p' "$work/$1"; }
served() {
  local other apart
  job cpu --backend cpu && job cuda --backend cuda && job cuda-no-graphs --backend cuda --no-graphs || return 1
  for other in cuda-no-graphs cpu; do
    apart=$(paste <(ids cuda) <(ids "$other") | awk '$1 != $2 {print NR; exit}')
    [[ ! $apart ]] || { line="cuda and $other differ from token $apart on"; return 1; }
  done
  [[ $(text cuda) == "$(text cpu)" && $(ids cuda | wc -l) == "$tokens" ]] || { line="texts differ, or not $tokens tokens"; return 1; }
  line="$tokens tokens, the same on cuda, without graphs, on cpu; exit 0"
}

# ---- f, g, h ----
ceilings() {
  local code=0
  [[ -x $bin/ceilings ]] || { line='no bin/ceilings: made by deploy/bundle.sh --tests where nvcc is'; return "$skipped"; }
  bounded "$bin/ceilings" --json "$out/ceilings.json" || code=$?
  line=$(output | grep -E '^  (copy of 4 GiB|read of 4 GiB) |: failed: ' | awk '{$1 = $1; print}' | head -n 3 | tr '\n' ';')
  return "$code"
}
cases() { sed 's/{"name":/\n&/g' "$1" | grep '^{"name"'; }
field() { sed -n "s/^{\"name\":\"\([^\"]*\)\".*\"$1\":\([0-9][0-9.e-]*\).*/\2\t\1/p"; }
bench() {  # FILE ARGUMENT...
  local file=$out/$1 code=0
  shift
  bounded "$bin/sparsekv" bench "$@" --backend cuda --json >"$file" || code=$?
  [[ -s $file ]] || rm -f "$file"
  ((code == 0)) || line=$(output | tail -n 1)
  return "$code"
}
kernels() {
  local shares
  bench kernels.json kernels || return
  shares=$(cases "$out/kernels.json" | grep -v '^{"name":"ceiling_' | field ceiling_share | sort -g |
    awk -F '\t' '{printf "%.2f (%s)\n", $1, $2}')
  line="$(cases "$out/kernels.json" | wc -l) cases; shares of the ceiling from ${shares%%$'\n'*} to ${shares##*$'\n'}"
}
steps() {
  bench decode.json decode "${decode[@]}" || return
  line=$(cases "$out/decode.json" | field seconds_median | awk -F '\t' '{printf "%s: %.3f ms a step; ", $2, $1 * 1e3}')
}

summary '' stage '' s 'the line that matters'
stage a 'the machine' facts.txt facts
stage b 'operations' tests.log operations
stage c 'operations, memcheck' memcheck.log memcheck
stage d 'checkpoints: P1, P2' tests.log checkpoints
stage e 'a served job' tests.log served
stage f 'ceilings' bench.log ceilings
stage g 'operations beside ceilings' bench.log kernels
stage h 'decode steps' bench.log steps
summary '' 'in all' "$( ((failed)) && echo FAIL || echo pass)" "$SECONDS" "$out"
cp "$work/summary" "$out/summary.txt"
exit "$failed"
