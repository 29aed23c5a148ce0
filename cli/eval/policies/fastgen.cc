#include <algorithm>

#include "cli/eval/policies/policies.h"
#include "cli/eval/policies/scores.h"

namespace sparsekv {

namespace {

// What a head keeps, cheapest first; each has the ones before it.
enum class Cache : uint8_t { kSpecial, kPunctuation, kFrequent, kLocal, kFull };

class FastGen : public HeadPolicy {
 public:
  explicit FastGen(double recovery) : recovery_(recovery) {}

  void Begin(const PromptStatistics& prompt) override {
    prompt_ = prompt;
    profiled_ = false;
  }

  void Select(const HeadStep& step, HeadSelection* selection) override {
    if (!profiled_) Profile(step.rows);
    const uint32_t tokens = step.tokens();
    for (uint32_t t = 0; t < tokens; ++t) {
      if (t + 1 == tokens || Keeps(cache_, t, tokens, step.rows / 2)) selection->rows.push_back(t);
    }
  }

 private:
  // The budget is split between the frequent and the local rows.
  void Profile(uint32_t rows) {
    const uint32_t tokens = prompt_.keys->tokens(), queries = prompt_.last_attention.size();
    profiled_ = true;
    cache_ = Cache::kFull;
    if (queries == 0) return;  // nothing to judge by: everything is kept
    std::vector<float> received(tokens, 0.0f);
    for (const std::vector<float>& attention : prompt_.last_attention) {
      for (size_t t = 0; t < attention.size(); ++t) received[t] += attention[t];
    }
    frequent_.assign(tokens, 0);
    for (uint32_t t : TopRows(received, std::min(rows / 2, tokens), 0, 0)) frequent_[t] = 1;
    for (Cache cache : {Cache::kSpecial, Cache::kPunctuation, Cache::kFrequent, Cache::kLocal}) {
      cache_ = cache;
      if (Kept(cache, rows / 2) >= recovery_ * queries) return;
    }
    cache_ = Cache::kFull;
  }

  // Attention of the prompt's last queries that the cache would have kept.
  double Kept(Cache cache, uint32_t local) const {
    double kept = 0;
    for (const std::vector<float>& attention : prompt_.last_attention) {
      const auto present = static_cast<uint32_t>(attention.size());
      for (uint32_t t = 0; t < present; ++t) {
        if (Keeps(cache, t, present, local)) kept += attention[t];
      }
    }
    return kept;
  }

  // Whether the cache has row t when `tokens` are there.
  bool Keeps(Cache cache, uint32_t t, uint32_t tokens, uint32_t local) const {
    const TokenKind kind = (*prompt_.kinds)[t];
    if (cache == Cache::kFull || kind == TokenKind::kSpecial) return true;
    if (cache >= Cache::kPunctuation && kind == TokenKind::kPunctuation) return true;
    if (cache >= Cache::kFrequent && t < frequent_.size() && frequent_[t]) return true;
    return cache >= Cache::kLocal && t + local >= tokens;
  }

  const double recovery_;
  PromptStatistics prompt_;
  bool profiled_ = false;
  Cache cache_ = Cache::kFull;
  std::vector<uint8_t> frequent_;  // [prompt]
};

}  // namespace

std::unique_ptr<HeadPolicy> MakeFastGen(double recovery) {
  return std::make_unique<FastGen>(recovery);
}

}  // namespace sparsekv
