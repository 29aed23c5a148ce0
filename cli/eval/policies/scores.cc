#include "cli/eval/policies/scores.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"

namespace sparsekv {

namespace {

// Wide vectors where the machine has them; the same bits, since nothing is fused. Sanitizers start
// too late for the resolvers of such clones.
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define SPARSEKV_WIDE __attribute__((target_clones("default", "avx2")))
#else
#define SPARSEKV_WIDE
#endif

SPARSEKV_WIDE void AddScaled(const float* x, float factor, uint32_t count, float* sum) {
  for (uint32_t i = 0; i < count; ++i) sum[i] += factor * x[i];
}

SPARSEKV_WIDE void AddScaled4(const float* const* x, const float* factors, uint32_t count,
                              float* sum) {
  const float *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
  const float f0 = factors[0], f1 = factors[1], f2 = factors[2], f3 = factors[3];
  for (uint32_t i = 0; i < count; ++i) {
    float s = sum[i];
    s += f0 * x0[i];
    s += f1 * x1[i];
    s += f2 * x2[i];
    s += f3 * x3[i];
    sum[i] = s;
  }
}

constexpr uint32_t kTile = 1024;  // tokens whose sums stay in the nearest cache

template <typename ChannelAt>
void Score(const float* q, const KeyHistory& keys, uint32_t tokens, size_t channels, ChannelAt at,
           float* scores) {
  CHECK_LE(tokens, keys.tokens());
  for (uint32_t from = 0; from < tokens; from += kTile) {
    const uint32_t count = std::min(kTile, tokens - from);
    float* sum = scores + from;
    std::fill_n(sum, count, 0.0f);
    size_t i = 0;
    for (; i + 4 <= channels; i += 4) {
      const float* x[4];
      float factors[4];
      for (size_t j = 0; j < 4; ++j) {
        x[j] = keys.Channel(at(i + j)) + from;
        factors[j] = q[at(i + j)];
      }
      AddScaled4(x, factors, count, sum);
    }
    for (; i < channels; ++i) AddScaled(keys.Channel(at(i)) + from, q[at(i)], count, sum);
  }
}

float Rankable(float score) {
  return std::isnan(score) ? -std::numeric_limits<float>::infinity() : score;
}

}  // namespace

void ScoreKeys(const float* q, const KeyHistory& keys, uint32_t tokens,
               std::span<const uint16_t> channels, float* scores) {
  Score(
      q, keys, tokens, channels.size(), [&](size_t i) { return channels[i]; }, scores);
}

void ScoreKeys(const float* q, const KeyHistory& keys, uint32_t tokens, float* scores) {
  Score(
      q, keys, tokens, keys.head_dim(), [](size_t i) { return static_cast<uint32_t>(i); }, scores);
}

void Softmax(std::span<float> scores, float scale) {
  if (scores.empty()) return;
  const float max = *std::ranges::max_element(scores);
  double sum = 0;
  for (float& s : scores) {
    s = std::exp(scale * (s - max));
    sum += s;
  }
  const float factor = static_cast<float>(1.0 / sum);
  for (float& s : scores) s *= factor;
}

void GroupAttention(const float* q, const KeyHistory& keys, uint32_t tokens, const HeadShape& shape,
                    std::vector<float>* attention) {
  attention->assign(tokens, 0.0f);
  std::vector<float> scores(tokens);
  for (uint32_t h = 0; h < shape.group; ++h) {
    ScoreKeys(q + size_t{h} * shape.head_dim, keys, tokens, scores.data());
    Softmax(scores, shape.scale);
    AddScaled(scores.data(), 1.0f / static_cast<float>(shape.group), tokens, attention->data());
  }
}

void GroupAttention(const float* q, const KeyHistory& keys, const HeadShape& shape,
                    std::span<const uint32_t> rows, std::vector<float>* attention) {
  attention->assign(rows.size(), 0.0f);
  std::vector<float> scores(rows.size());
  for (uint32_t h = 0; h < shape.group; ++h) {
    std::ranges::fill(scores, 0.0f);
    for (uint32_t c = 0; c < shape.head_dim; ++c) {
      const float factor = q[size_t{h} * shape.head_dim + c];
      const float* channel = keys.Channel(c);
      for (size_t i = 0; i < rows.size(); ++i) scores[i] += factor * channel[rows[i]];
    }
    Softmax(scores, shape.scale);
    for (size_t i = 0; i < rows.size(); ++i) {
      (*attention)[i] += scores[i] / static_cast<float>(shape.group);
    }
  }
}

std::vector<uint32_t> TopRows(std::span<const float> scores, uint32_t count, uint32_t first,
                              uint32_t last) {
  const auto tokens = static_cast<uint32_t>(scores.size());
  CHECK_LE(count, tokens);
  first = std::min(first, count);
  last = std::min(last, count - first);
  std::vector<uint32_t> rows(tokens);
  std::iota(rows.begin(), rows.end(), 0u);
  const auto begin = rows.begin() + first, end = rows.end() - last;
  const auto cut = begin + (count - first - last);
  const auto better = [&](uint32_t a, uint32_t b) {
    const float x = Rankable(scores[a]), y = Rankable(scores[b]);
    return x != y ? x > y : a < b;
  };
  if (cut < end) std::nth_element(begin, cut, end, better);
  std::sort(begin, cut);
  rows.erase(cut, end);
  return rows;
}

}  // namespace sparsekv
