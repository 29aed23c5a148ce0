#include "kernels/sample.h"

namespace sparsekv {
namespace {

// One round of splitmix64: a bijection that spreads every input bit over the output.
uint64_t Mix(uint64_t z) {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace

double UniformFor(uint64_t seed, uint32_t position) {
  // Mixing the seed first keeps (seed, position) and (seed + 1, position - 1) unrelated.
  const uint64_t bits = Mix(Mix(seed) ^ position);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace sparsekv
