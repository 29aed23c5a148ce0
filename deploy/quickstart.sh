#!/usr/bin/env bash
# The main job on a fresh machine, as root: installs what is missing, builds, serves the demo checkpoint
# and completes a prompt, then chases 64 pointers through 16,384 tokens on a checkpoint that only answers
# right when the one right row was attended: dense, and with double sparsity at 1/16. May be repeated.
set -euo pipefail
cd "$(dirname "$0")/.."

deploy/install-deps.sh
[[ -f build/build.ninja ]] || cmake --preset release >/dev/null
cmake --build build --target sparsekv

sparsekv=build/bin/sparsekv
work=$(mktemp -d)
server=
stop_server() {
  [[ $server ]] || return 0
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" || { echo "the server did not stop cleanly" >&2; server=; return 1; }
  server=
}
trap 'stop_server || true; rm -rf "$work"' EXIT

# serve DIR [OPTION...]: starts a server on a free port and sets $address.
serve() {
  : >"$work/ready"
  SPARSEKV_LOG=warn "$sparsekv" serve --model "$@" --grpc 127.0.0.1:0 --http 127.0.0.1:0 >"$work/ready" &
  server=$!
  for ((i = 0; i < 600; ++i)); do
    [[ -s $work/ready ]] && break
    kill -0 "$server" 2>/dev/null || { echo "the server did not start" >&2; exit 1; }
    sleep 0.1
  done
  address=$(sed -n 's/^ready grpc=\([^ ]*\).*/\1/p' "$work/ready")
  [[ $address ]] || { echo "the server did not get ready" >&2; exit 1; }
}

prompt="And God said unto Moses,"
echo
echo "== deploy/demo: a completion"
serve deploy/demo --host-memory 512M
"$sparsekv" generate --grpc "$address" --prompt "$prompt" --max-tokens 48 --json >"$work/demo.json"
stop_server
jq -r --arg prompt "$prompt" '
  "\($prompt)\(.text)\n\n" +
  "\(.usage.prompt_tokens) prompt tokens, \(.usage.completion_tokens) generated (\(.finish_reason)), " +
  "\(.sparsity.attention), first token after \(.timings.ttft_s * 1000 | round) ms, " +
  "\(if .timings.decode_s > 0 then (.usage.completion_tokens - 1) / .timings.decode_s | round else 0 end) tokens/s"
' "$work/demo.json"

echo
echo "== recall checkpoint: a pointer chase of 64 through 16,384 tokens"
"$sparsekv" recall --out "$work/recall" --context 16384 --hops 64
serve "$work/recall" --host-memory 512M
for attention in dense double-sparsity; do
  "$sparsekv" generate --grpc "$address" --prompt-file "$work/recall/chase.txt" --max-tokens 64 \
    --attention "$attention" --budget 1/16 --json >"$work/$attention.json"
done
stop_server

row() { printf '%-34s %18s %18s\n' "$@"; }
cell() { jq -r "$2" "$work/$1.json"; }
right() {
  jq -n --slurpfile got "$work/$1.json" --slurpfile want "$work/recall/chase.json" '
    $want[0].expected_token_ids as $w | $got[0].token_ids as $g |
    [range($w | length) | select($g[.] == $w[.])] | length'
}
row "" dense "double sparsity"
row "right answers of 64" "$(right dense)" "$(right double-sparsity)"
compare() { row "$1" "$(cell dense "$2")" "$(cell double-sparsity "$2")"; }
compare "rows of a selection" '.sparsity.budget_effective'
compare "rows read from host memory" '.sparsity.rows_fetched'
compare "device memory for labels, KiB" '.sparsity.device_kv_bytes / 1024 | round'
compare "host memory for rows, KiB" '.sparsity.host_kv_bytes / 1024 | round'
compare "time to first token, s" '.timings.ttft_s * 1000 | round / 1000'
compare "decode, ms per token" '.timings.decode_s / (.usage.completion_tokens - 1) * 100000 | round / 100'
[[ $(right dense) == 64 && $(right double-sparsity) == 64 ]] || { echo "wrong answers" >&2; exit 1; }
