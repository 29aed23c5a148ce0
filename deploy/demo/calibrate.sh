#!/usr/bin/env bash
# Makes channels.json: which channels of K are labels, measured on text like the training's, which is the
# King James Bible (Debian's package bible-kjv) with facts between the verses that are asked for later.
#   deploy/demo/calibrate.sh [TEXT [OUT [OPTION...]]]
# TEXT instead of what `bible` prints; OUT instead of deploy/demo/channels.json; more options of `sparsekv calibrate`.
set -euo pipefail
cd "$(dirname "$0")/../.."

text=${1:-} out=${2:-deploy/demo/channels.json}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [[ $text ]]; then cp "$text" "$work/book"; else bible -f Gen1:1-Rev22:21 >"$work/book"; fi

# A fact after every sixth verse, asked for 40 verses later; numbers by a fixed recurrence.
awk 'BEGIN { split("candle horse lamp river mantle bread ladder garden silver basket window hammer", key, " ") }
  NR > 900 { exit }
  { print }
  NR % 6 == 0 { x = (x * 1103515245 + 12345) % 2147483648; n = 10000 + x % 90000
    name = key[NR / 6 % 12 + 1] " " key[int(NR / 72) % 12 + 1]
    fact[NR] = "The number of " name " is " n "."; print fact[NR] }
  (NR - 40) in fact { print fact[NR - 40] }' "$work/book" >"$work/text"
options=("${@:3}")
default() { [[ " ${options[*]} " == *" $1"[\ =]* ]] || options+=("$1" "$2"); }
default --label-format int2
default --label-channels 32
default --held-out 0  # all of the text decides: what labels hold is in FIDELITY.md
build/bin/sparsekv calibrate --model deploy/demo --text "$work/text" --max-tokens 32768 --out "$out" "${options[@]}"
