#!/usr/bin/env bash
# Installs what a build needs on Debian 12. As root; may be repeated; silent when nothing is missing.
#   deploy/install-deps.sh           to build and serve
#   deploy/install-deps.sh --tests   and what tests look at besides
#   deploy/install-deps.sh --fuzz    and clang, for tests/fuzz.sh
set -euo pipefail

packages=(
  build-essential cmake ninja-build ccache pkg-config ca-certificates
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
  libboost1.81-dev libspdlog-dev libcli11-dev libtomlplusplus-dev
  nlohmann-json3-dev rapidjson-dev libpcre2-dev libicu-dev libxxhash-dev libhwy-dev zlib1g-dev
  prometheus-cpp-dev libgtest-dev
  jq curl procps
)
case ${1:-} in
  '') ;;
  --tests) packages+=(prometheus) ;;  # for promtool
  --fuzz) packages+=(clang) ;;
  *) echo "usage: deploy/install-deps.sh [--tests|--fuzz]" >&2; exit 2 ;;
esac
missing=()
for package in "${packages[@]}"; do
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0
echo "installing: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive

# No package starts a daemon here, now or at boot.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
if [[ " ${missing[*]} " == *" prometheus "* ]] && command -v systemctl >/dev/null; then
  systemctl disable --quiet prometheus.service
fi
