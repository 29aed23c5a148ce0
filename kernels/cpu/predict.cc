#include <algorithm>
#include <cmath>

#include "kernels/cpu/operations.h"

namespace sparsekv::cpu {

void Extrapolate(const ExtrapolateArgs& args, Context&) {
  std::copy_n(args.x, size_t{args.tokens} * args.width, args.out);
  for (const ExtrapolateArgs::Item& item : args.items) {
    const size_t first = size_t{item.token} * args.width;
    float* here = item.drift + size_t{args.layer} * args.width;
    const float* next = here + args.width;
    for (uint32_t i = 0; i < args.width; ++i) {
      if (args.layer > 0) {
        here[i] += item.rate * (args.x[first + i] - args.previous[first + i] - here[i]);
      }
      args.out[first + i] += next[i];
    }
  }
}

void ExpandQuery(const ExpandQueryArgs& args, Context&) {
  const uint32_t heads = args.kv_heads * args.group;
  std::fill_n(args.q, size_t{args.tokens} * heads * args.head_dim, 0.0f);
  for (uint32_t i = 0; i < args.tokens * heads; ++i) {
    const float* from = args.compact + size_t{i} * args.width;
    float* to = args.q + size_t{i} * args.head_dim;
    const uint16_t* channels = args.channels + size_t{i % heads / args.group} * args.width;
    for (uint32_t j = 0; j < args.width; ++j) to[channels[j]] = from[j];
  }
}

void Cosine(const CosineArgs& args, Context& context) {
  context.pool.Run(args.tokens, [&](uint32_t t, unsigned) {
    const float* a = args.a + size_t{t} * args.width;
    const float* b = args.b + size_t{t} * args.width;
    double ab = 0, aa = 0, bb = 0;
    for (uint32_t i = 0; i < args.width; ++i) {
      ab += double{a[i]} * b[i];
      aa += double{a[i]} * a[i];
      bb += double{b[i]} * b[i];
    }
    args.out[t] = aa > 0 && bb > 0 ? static_cast<float>(ab / (std::sqrt(aa) * std::sqrt(bb))) : 0.f;
  });
}

}  // namespace sparsekv::cpu
