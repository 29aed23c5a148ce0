#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "kernels/half.h"
#include "kernels/label_query.h"
#include "kernels/reference/operations.h"

namespace sparsekv::reference {
namespace {

// As HeadScores, of labels that are codes.
std::vector<float> CodedHeadScores(const ScoreLabelsArgs::Item& item, uint32_t kv_head,
                                   const std::vector<float>& query) {
  const uint32_t bits = CodeBits(item.labels.layout->format), in_word = 32 / bits;
  const CodedQuery coded = CodeQuery(query);
  std::vector<float> scores;
  for (uint32_t t = item.first; t < item.tokens; ++t) {
    const std::byte* page = item.labels.Head(kv_head, t / kBlockTokens);
    const uint32_t token = t % kBlockTokens;
    const auto* words =
        reinterpret_cast<const uint32_t*>(page + 2 * sizeof(uint16_t) * kBlockTokens);
    int32_t dot = 0;
    for (uint32_t c = 0; c < query.size(); ++c) {
      const uint32_t word = words[c / in_word * kBlockTokens + token];
      const uint32_t code = word >> (c % in_word * bits) & ((1u << bits) - 1);
      dot += coded.codes[c] * static_cast<int32_t>(code);
    }
    scores.push_back(CodedScore(coded.unit, coded.sum, LoadValue(page, token, DType::kF16),
                                LoadValue(page, kBlockTokens + token, DType::kF16), dot));
  }
  return scores;
}

// s_h(t) of one query head for every token. `query` holds the head's values on the label channels.
std::vector<float> HeadScores(const ScoreLabelsArgs::Item& item, uint32_t kv_head,
                              const std::vector<float>& query) {
  if (item.labels.layout->coded()) return CodedHeadScores(item, kv_head, query);
  std::vector<float> scores;  // from item.first on
  for (uint32_t t = item.first; t < item.tokens; ++t) {
    const std::byte* page = item.labels.Head(kv_head, t / kBlockTokens);
    float sum = 0;
    for (size_t c = 0; c < query.size(); ++c) {
      const float label = LoadValue(page, c * kBlockTokens + t % kBlockTokens, DType::kBF16);
      sum = sum + query[c] * label;
    }
    scores.push_back(sum);
  }
  return scores;
}

// Divides the query by its length, so that what it scores is s_h(t) / |q_h|.
void Normalise(std::vector<float>& query) {
  float squares = 0;
  for (float value : query) squares = squares + value * value;
  const float norm = std::sqrt(squares);
  for (float& value : query) value = norm == 0 ? 0 : value / norm;
}

std::vector<float> Softmax(const std::vector<float>& scores) {
  double highest = -std::numeric_limits<double>::infinity();
  for (float score : scores) highest = std::max(highest, double{score});
  double total = 0;
  for (float score : scores) total += std::exp(score - highest);
  std::vector<float> mass;
  for (float score : scores) {
    mass.push_back(static_cast<float>(std::exp(score - highest) / total));
  }
  return mass;
}

}  // namespace

void ScoreLabels(const ScoreLabelsArgs& args) {
  for (const ScoreLabelsArgs::Item& item : args.items) {
    const uint32_t channels = item.labels.layout->channels;
    for (uint32_t kv_head = 0; kv_head < args.kv_heads; ++kv_head) {
      float* pooled = item.scores + kv_head * args.score_stride;
      for (uint32_t g = 0; g < args.group; ++g) {
        const size_t head =
            size_t{item.query} * args.kv_heads * args.group + size_t{kv_head} * args.group + g;
        std::vector<float> query;
        for (uint32_t c = 0; c < channels; ++c) {
          query.push_back(args.q[head * args.head_dim + args.channels[kv_head * channels + c]]);
        }
        if (args.pooling == Pooling::kMaxNormalised) Normalise(query);
        if (args.pooling == Pooling::kSoftmaxMass) {
          for (float& value : query) value /= std::sqrt(static_cast<float>(args.head_dim));
        }
        for (float& value : query) value = LabelQuery(value);
        std::vector<float> scores = HeadScores(item, kv_head, query);
        if (args.pooling == Pooling::kSoftmaxMass) scores = Softmax(scores);
        for (uint32_t t = item.first; t < item.tokens; ++t) {
          const float score = scores[t - item.first];
          if (g == 0) {
            pooled[t] = score;
          } else if (args.pooling == Pooling::kMaxNormalised) {
            pooled[t] = std::max(pooled[t], score);
          } else {
            pooled[t] = pooled[t] + score;
          }
        }
      }
    }
  }
}

void Select(const SelectArgs& args) {
  for (const SelectArgs::Item& item : args.items) {
    CHECK_LE(AlwaysSetSize(item.tokens, item.first), item.count);
    CHECK_LE(item.count, item.tokens - item.first);
    for (uint32_t h = 0; h < args.kv_heads; ++h) {
      const float* scores = item.scores + h * args.score_stride;
      const auto always = [&](uint32_t t) {
        return t < kSinkTokens || t + kRecentTokens + 1 >= item.tokens;
      };
      std::vector<uint32_t> order(item.tokens - item.first);
      std::iota(order.begin(), order.end(), item.first);
      std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
        if (always(a) != always(b)) return always(a);
        if (always(a)) return false;
        if (std::isnan(scores[a]) || std::isnan(scores[b])) {
          return !std::isnan(scores[a]) && std::isnan(scores[b]);
        }
        return scores[a] > scores[b];
      });
      uint32_t* selection = item.selection + h * args.selection_stride;
      std::copy_n(order.begin(), item.count, selection);
      std::sort(selection, selection + item.count);
    }
  }
}

}  // namespace sparsekv::reference
