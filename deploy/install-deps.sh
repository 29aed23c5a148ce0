#!/usr/bin/env bash
# Installs what a build needs on Debian 12. As root; may be repeated; silent when nothing is missing.
set -euo pipefail

packages=(
  build-essential cmake ninja-build ccache pkg-config ca-certificates
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
  libboost1.81-dev libspdlog-dev libcli11-dev libtomlplusplus-dev
  nlohmann-json3-dev rapidjson-dev libpcre2-dev libxxhash-dev libhwy-dev
  prometheus-cpp-dev libgtest-dev
  libopenblas0  # only what `sparsekv bench kernels` compares prefill with
  jq curl procps
)
missing=()
for package in "${packages[@]}"; do
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0
echo "installing: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
