#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "kernels/reference/operations.h"

namespace sparsekv::reference {
namespace {

// NaN ranks with minus infinity: such a token is never drawn while another can be.
float Usable(float logit) {
  return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
}

}  // namespace

SampledToken Sample(const SampleArgs& args) {
  CHECK_LT(0u, args.vocab);
  std::vector<uint32_t> order(args.vocab);
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return Usable(args.logits[a]) > Usable(args.logits[b]);
  });
  const double highest = Usable(args.logits[order[0]]);
  const auto below = [&](uint32_t id) {  // distance from the highest; equal infinities are 0 apart
    const double logit = Usable(args.logits[id]);
    return logit == highest ? 0.0 : logit - highest;
  };
  double total = 0;
  for (uint32_t id = 0; id < args.vocab; ++id) total += std::exp(below(id));
  const auto logprob = [&](uint32_t id) { return static_cast<float>(below(id) - std::log(total)); };

  SampledToken drawn;
  drawn.id = order[0];
  if (args.params.temperature > 0) {
    // The kept tokens: the top_k highest, then the fewest of those that hold top_p of their mass.
    std::vector<uint32_t> kept = order;
    if (args.params.top_k != 0 && args.params.top_k < args.vocab) kept.resize(args.params.top_k);
    const auto weight = [&](uint32_t id) { return std::exp(below(id) / args.params.temperature); };
    double mass = 0;
    for (uint32_t id : kept) mass += weight(id);
    if (args.params.top_p < 1) {
      double reached = 0;
      size_t count = 0;
      while (count < kept.size() && (count == 0 || reached < args.params.top_p * mass)) {
        reached += weight(kept[count++]);
      }
      kept.resize(count);
      mass = reached;
    }
    // The draw walks the kept tokens by id.
    std::sort(kept.begin(), kept.end());
    const double target = UniformFor(args.params.seed, args.position) * mass;
    double passed = 0;
    for (uint32_t id : kept) {
      if (weight(id) == 0) continue;
      drawn.id = id;
      passed += weight(id);
      if (passed > target) break;
    }
  }
  drawn.logprob = logprob(drawn.id);
  for (uint32_t i = 0; i < args.top_logprobs && i < args.vocab; ++i) {
    drawn.top.emplace_back(order[i], logprob(order[i]));
  }
  return drawn;
}

}  // namespace sparsekv::reference
