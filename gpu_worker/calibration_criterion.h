#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace sparsekv {

// What a channel is worth to a label. Except for the published ones, per KV head, summed over the
// group's query heads, after rotary embedding, over all of the text. q[t, c] is a query's channel,
// k[s, c] a key's, a[t, s] the attention that t pays to s.
enum class ChannelWorth : uint8_t {
  // As the script published with Double Sparsity has it, its defects included
  // (calibration_published.h).
  kPublishedQ,
  kPublishedK,
  kPublishedQk,
  kQ,         // mean |q|
  kK,         // mean |k|
  kQk,        // mean |q| * mean |k|: the mean size of its part of a score, over all pairs
  kDiagonal,  // mean over t of |q[t] k[t]|: kPublishedQk without its defects
  kVariance,  // mean q^2 * variance of k in its context: what is the same for all keys ranks none
  // The next two over sampled queries, with keys outside of the always-set, which is attended
  // whatever its scores.
  kMass,  // sum of a |q k|
  kLift,  // sum over t of q[t] * (sum over s of a[t, s] (k[s] - mean k)): what it adds to the
          // scores of attended keys over those of average ones
};

struct ChannelCriterion {
  ChannelWorth worth = ChannelWorth::kQk;
  // Channels c and c + head_dim / 2, which rotary embedding turns together, are chosen together, by
  // the sum of their worths.
  bool pairs = false;

  bool published() const { return worth <= ChannelWorth::kPublishedQk; }
  bool operator==(const ChannelCriterion&) const = default;
};

// "published-q", "published-k", "published-qk", "q", "k", "qk", "qk-diagonal", "qk-variance",
// "qk-mass", "qk-lift"; all but the published ones also with "-pairs".
std::string Name(ChannelCriterion criterion);
std::optional<ChannelCriterion> ParseCriterion(std::string_view name);

// Those that a report compares.
std::span<const ChannelCriterion> ComparedCriteria();

}  // namespace sparsekv
