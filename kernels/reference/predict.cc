#include <algorithm>
#include <cmath>

#include "kernels/reference/operations.h"

namespace sparsekv::reference {

void Extrapolate(const ExtrapolateArgs& args) {
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

void ExpandQuery(const ExpandQueryArgs& args) {
  const uint32_t heads = args.kv_heads * args.group;
  for (uint32_t t = 0; t < args.tokens; ++t) {
    for (uint32_t h = 0; h < heads; ++h) {
      const float* from = args.compact + (size_t{t} * heads + h) * args.width;
      float* to = args.q + (size_t{t} * heads + h) * args.head_dim;
      std::fill(to, to + args.head_dim, 0.0f);
      const uint16_t* channels = args.channels + size_t{h / args.group} * args.width;
      for (uint32_t j = 0; j < args.width; ++j) to[channels[j]] = from[j];
    }
  }
}

void Cosine(const CosineArgs& args) {
  for (uint32_t t = 0; t < args.tokens; ++t) {
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = size_t{t} * args.width; i < size_t{t + 1} * args.width; ++i) {
      ab += double{args.a[i]} * args.b[i];
      aa += double{args.a[i]} * args.a[i];
      bb += double{args.b[i]} * args.b[i];
    }
    args.out[t] = aa > 0 && bb > 0 ? static_cast<float>(ab / (std::sqrt(aa) * std::sqrt(bb))) : 0.f;
  }
}

}  // namespace sparsekv::reference
