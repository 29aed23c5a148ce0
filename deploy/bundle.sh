#!/usr/bin/env bash
# Makes a relocatable tarball for x86-64 Linux: the programs, every library they need but glibc's own,
# and the demo checkpoint. The machine it goes to needs glibc (README.txt inside says from which version
# on) and, for --backend cuda, NVIDIA's driver; nothing else. Builds first where nothing is built.
#   deploy/bundle.sh [OPTION...] OUT.tar.gz
#     --thin        without cuBLASLt, which the machine must have; fails above 60 MiB
#     --tests       with the tests for a machine with a GPU, tests/gpu/run.sh
#     --build DIR   what to bundle; default build
set -euo pipefail

usage() { sed -n '5,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
fail() { echo "bundle: $*" >&2; exit 1; }

thin='' tests='' build='' out=''
while (($#)); do
  case $1 in
    --thin) thin=yes ;;
    --tests) tests=yes ;;
    --build) [[ ${2:-} ]] || usage; build=$(realpath -m -- "$2"); shift ;;
    -*) usage ;;
    *) [[ ! $out ]] || usage; out=$(realpath -m -- "$1") ;;
  esac
  shift
done
[[ $out == *.tar.gz ]] || usage
[[ -d $(dirname "$out") ]] || fail "$(dirname "$out"): no such directory"
cd "$(dirname "$0")/.."
build=${build:-$PWD/build}
[[ $(uname -sm) == "Linux x86_64" ]] || fail "bundles are for x86-64 Linux and made there, not on $(uname -sm)"

programs=(sparsekv sparsekv-coordinator sparsekv-kv-store sparsekv-gpu-worker)
gpu_tests=(kernels_cuda_test gpu_checkpoint_test)
targets=(sparsekv)
[[ ! $tests ]] || targets+=("${gpu_tests[@]}")
if [[ ! -d $build ]]; then
  deploy/install-deps.sh
  cmake --preset release -B "$build" >/dev/null
  cmake --build "$build" --target "${targets[@]}"
fi
files=("${programs[@]/#/$build/bin/}")
[[ ! $tests ]] || files+=("${gpu_tests[@]/#/$build/tests/}")
for file in "${files[@]}"; do
  [[ -x $file ]] || fail "$file is not built: cmake --build $build --target ${targets[*]}"
done
if ! command -v patchelf >/dev/null; then
  [[ $(id -u) == 0 ]] || fail "patchelf is not here: apt-get install patchelf, or run this as root"
  echo "installing: patchelf" >&2
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends patchelf >/dev/null
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundle=$work/sparsekv
mkdir -p "$bundle"/{bin,lib,deploy,licenses}
cp "${programs[@]/#/$build/bin/}" "$bundle/bin"
cp -R deploy/demo "$bundle/deploy"
cp LICENSE "$bundle/licenses/sparsekv"
if [[ $tests ]]; then
  mkdir "$bundle/tests"
  cp "${gpu_tests[@]/#/$build/tests/}" "$bundle/tests"
  cp -R tests/gpu "$bundle/tests"
  nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
  if [[ -x $nvcc ]]; then
    "$nvcc" -std=c++20 -O3 -gencode=arch=compute_90,code=sm_90 -cudart static \
      -o "$bundle/bin/ceilings" tests/gpu/ceilings.cu
  else
    echo "no nvcc: bin/ceilings is left out" >&2
  fi
fi
find "$bundle" -name __pycache__ -prune -exec rm -rf {} +
mapfile -t ours < <(find "$bundle/bin" "$bundle/tests" -maxdepth 1 -type f 2>/dev/null)

# The machine's: glibc, which goes with its kernel and loader, and the library of NVIDIA's driver.
machines='statically linked|linux-vdso|ld-linux|lib(c|m|mvec|dl|pthread|rt|resolv|util|anl|cuda)\.so'
needed() {
  local line name path
  ldd "$1" | sed 's/^\t//; s/ (0x[0-9a-f]*)$//' | while read -r line; do
    name=${line%% => *} path=${line#* => }
    [[ ! ${name##*/} =~ ^($machines) ]] || continue
    [[ $path == /* ]] || { echo "bundle: $1 needs $name, which is not here" >&2; return 1; }
    echo "$path"
  done
}
for file in "${ours[@]}"; do needed "$file"; done | sort -u >"$work/libraries"
while read -r library; do
  cp -L "$library" "$bundle/lib"
  # Packages own paths as they were before /lib became a link.
  package=$(dpkg-query -S "$library" "${library#/usr}" "/usr$library" 2>/dev/null | sed -n '1s/[:,].*//p') || true
  [[ ! -f /usr/share/doc/$package/copyright ]] || cp "/usr/share/doc/$package/copyright" "$bundle/licenses/$package"
done <"$work/libraries"

# Stripped before their paths are set: strip does not know what patchelf has moved. An RPATH, not a
# RUNPATH, so that no LD_LIBRARY_PATH of the machine comes before it.
chmod -R u+w "$bundle"
strip "${ours[@]}"
strip --strip-unneeded "$bundle"/lib/*
# shellcheck disable=SC2016  # $ORIGIN is the loader's
patchelf --force-rpath --set-rpath '$ORIGIN/../lib' "${ours[@]}"
# shellcheck disable=SC2016
patchelf --force-rpath --set-rpath '$ORIGIN' "$bundle"/lib/*

# A worker with CUDA names the cuBLASLt that it opens. That one finds what it needs by itself.
backends=cpu cublaslt=$(grep -aom1 'libcublasLt\.so\.[0-9]*' "$bundle/bin/sparsekv-gpu-worker" | tail -n 1) || true
if [[ $cublaslt ]]; then
  backends="cpu, and cuda with NVIDIA's driver for CUDA ${cublaslt##*.}"
  if [[ $thin ]]; then
    backends+=" and $cublaslt in the loader's path, here in lib/, or in /usr/local/cuda/lib64"
  else
    for place in "${CUDA_HOME:-/usr/local/cuda}/lib64" /usr/local/cuda/lib64 /usr/lib/x86_64-linux-gnu; do
      [[ -f $bundle/lib/$cublaslt || ! -f $place/$cublaslt ]] || cp -L "$place/$cublaslt" "$bundle/lib"
    done
    [[ -f $bundle/lib/$cublaslt ]] || fail "$cublaslt is not in a CUDA toolkit here; --thin does without"
  fi
fi

glibc=$(readelf -VW "${ours[@]}" "$bundle"/lib/* | grep -o 'GLIBC_2\.[0-9]*' | sort -Vu | tail -n 1)
cat >"$bundle/README.txt" <<TEXT
sparsekv $("$bundle/bin/sparsekv" --version), x86-64 Linux with glibc ${glibc#GLIBC_} or later. Backends: $backends.
Serve: bin/sparsekv serve --model deploy/demo      Ask: bin/sparsekv generate --prompt "In the beginning"
Check: sha256sum --quiet -c SHA256SUMS${tests:+      Test on a GPU: tests/gpu/run.sh}
TEXT
(cd "$bundle" && find . -type f -printf '%P\0' | sort -z | xargs -0 sha256sum) >"$work/sums"
mv "$work/sums" "$bundle/SHA256SUMS"

tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf - sparsekv | gzip -n >"$work/out"
size=$(stat -c %s "$work/out")
mib=$(((size + 1048575) / 1048576))
[[ ! $thin ]] || ((size < 60 * 1048576)) || fail "$mib MiB, and a thin bundle must stay under 60"

# As it will be used: somewhere else, in an empty environment.
mkdir "$work/un packed"
tar -C "$work/un packed" -xf "$work/out"
there="$work/un packed/sparsekv"
env -i "$there/bin/sparsekv" --version >/dev/null || fail "the unpacked sparsekv does not start"
for file in "$there"/bin/* "$there"/lib/*; do
  outside=$(needed "$file" | grep -vF "$there/") || true
  [[ ! $outside ]] || fail "${file##*/} takes ${outside%%$'\n'*} from this machine"
done
mv "$work/out" "$out"
echo "$out: $mib MiB, $(find "$there/lib" -type f | wc -l) libraries; backends: $backends"
