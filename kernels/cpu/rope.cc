#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/cpu/operations.h"

namespace sparsekv::cpu {
namespace {

// Plain loops: the compiler's own vectors suffice, a step moves only q and k here.
void RotateHead(float* x, const float* cosines, const float* sines, size_t half) {
  for (size_t c = 0; c < half; ++c) {
    const float a = x[c];
    const float b = x[c + half];
    x[c] = a * cosines[c] - b * sines[c];
    x[c + half] = b * cosines[c] + a * sines[c];
  }
}

}  // namespace

void Rotation::MakeTable(const RopeArgs& args, Context& context) {
  positions_.assign(args.positions.begin(), args.positions.end());
  inverse_frequency_.assign(args.inverse_frequency.begin(), args.inverse_frequency.end());
  const size_t half = inverse_frequency_.size();
  table_.resize(positions_.size() * 2 * half);
  context.pool.Run(static_cast<uint32_t>(positions_.size()), [&](uint32_t t, unsigned) {
    float* row = table_.data() + t * 2 * half;
    for (size_t c = 0; c < half; ++c) {
      // Angles reach millions: only double's reduction keeps the float's exact value.
      const float angle = static_cast<float>(positions_[t]) * inverse_frequency_[c];
      row[c] = static_cast<float>(std::cos(double{angle}));
      row[half + c] = static_cast<float>(std::sin(double{angle}));
    }
  });
}

void Rotation::Apply(const RopeArgs& args, Context& context) {
  const size_t half = args.head_dim / 2;
  CHECK_EQ(args.inverse_frequency.size(), half);
  if (!std::ranges::equal(positions_, args.positions) ||
      !std::ranges::equal(inverse_frequency_, args.inverse_frequency)) {
    MakeTable(args, context);
  }
  context.pool.Run(static_cast<uint32_t>(args.positions.size()), [&](uint32_t t, unsigned) {
    const float* row = table_.data() + t * 2 * half;
    for (size_t h = 0; h < args.heads; ++h) {
      RotateHead(args.x + (t * size_t{args.heads} + h) * args.head_dim, row, row + half, half);
    }
  });
}

}  // namespace sparsekv::cpu
