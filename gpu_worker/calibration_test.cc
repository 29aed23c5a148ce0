#include "gpu_worker/calibration.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>

#include "gpu_worker/budget.h"
#include "gpu_worker/calibration_published.h"
#include "gpu_worker/calibration_recall.h"
#include "gpu_worker/channel_config.h"
#include "kernels/half.h"
#include "kernels/label_codes.h"
#include "kernels/reference/operations.h"

namespace sparsekv {
namespace {

ModelConfig Model(uint32_t layers, uint32_t kv_heads, uint32_t group, uint32_t head_dim) {
  ModelConfig model;
  model.layers = layers;
  model.kv_heads = kv_heads;
  model.heads = kv_heads * group;
  model.head_dim = head_dim;
  return model;
}

std::vector<float> RandomValues(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.2f, 1);
  std::vector<float> values(count);
  for (float& x : values) x = normal(random);
  return values;
}

HeadSample RandomSample(const ModelConfig& model, uint32_t tokens, uint32_t queries,
                        uint32_t window, uint64_t seed) {
  HeadSample sample = {.head_dim = model.head_dim,
                       .group = model.group(),
                       .window = window,
                       .scale = 0.5f,
                       .tokens = tokens,
                       .keys = RandomValues(size_t{tokens} * model.head_dim, seed)};
  for (uint32_t i = 1; i <= queries; ++i) sample.positions.push_back(tokens * i / queries - 1);
  sample.queries = RandomValues(size_t{queries} * model.heads * model.head_dim, seed + 1);
  return sample;
}

bool Always(uint32_t t, uint32_t present) {
  return t < kSinkTokens || t + kRecentTokens + 1 >= present;
}

// The definition, in double: [present], 0 before the window.
std::vector<double> SlowAttention(const HeadSample& s, size_t i, uint32_t h) {
  const uint32_t present = s.positions[i] + 1;
  const uint32_t first = s.window > 0 && present > s.window ? present - s.window : 0;
  std::vector<double> a(present, 0.0);
  double total = 0;
  for (uint32_t t = first; t < present; ++t) {
    double score = 0;
    for (uint32_t c = 0; c < s.head_dim; ++c) score += double{s.Query(i, h)[c]} * s.Channel(c)[t];
    total += a[t] = std::exp(score * s.scale);
  }
  for (double& x : a) x /= total;
  return a;
}

TEST(Calibration, EveryCriterionHasAName) {
  for (ChannelCriterion criterion : ComparedCriteria()) {
    EXPECT_EQ(ParseCriterion(Name(criterion)), criterion) << Name(criterion);
  }
  EXPECT_FALSE(ParseCriterion("published-q-pairs"));
  EXPECT_FALSE(ParseCriterion("Qk"));
}

TEST(Calibration, OrdersByWorthAndPairsByTheirSum) {
  EXPECT_EQ(OrderChannels({1, 5, 2, 5}, false), (std::vector<uint16_t>{1, 3, 2, 0}));
  // Pairs (0, 3), (1, 4), (2, 5) of 3, 7, 7.
  EXPECT_EQ(OrderChannels({3, 1, 7, 0, 6, 0}, true), (std::vector<uint16_t>{1, 4, 2, 5, 0, 3}));
}

TEST(Calibration, SizesAreSumsOverTokensAndTheGroup) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    const uint32_t group = 1 + static_cast<uint32_t>(seed), dim = 8, tokens = 37;
    const ModelConfig model = Model(2, 3, group, dim);
    const auto q = RandomValues(size_t{tokens} * model.heads * dim, seed);
    const auto k = RandomValues(size_t{tokens} * model.kv_heads * dim, seed + 9);
    ChannelStatistic statistic(model);
    statistic.Add(1, q.data(), k.data(), 20);  // in two parts
    statistic.Add(1, q.data() + 20 * model.heads * dim, k.data() + 20 * 3 * dim, tokens - 20);
    for (uint32_t head = 0; head < 3; ++head) {
      for (uint32_t c = 0; c < dim; ++c) {
        double q_sum = 0, k_sum = 0, both = 0, all_pairs = 0;
        for (uint32_t t = 0; t < tokens; ++t) {
          const double key = std::fabs(k[(t * 3 + head) * dim + c]);
          k_sum += key;
          for (uint32_t h = head * group; h < (head + 1) * group; ++h) {
            const double query = std::fabs(q[(t * model.heads + h) * dim + c]);
            q_sum += query;
            both += query * key;
            for (uint32_t s = 0; s < tokens; ++s) {
              all_pairs += query * std::fabs(k[(s * 3 + head) * dim + c]);
            }
          }
        }
        EXPECT_NEAR(statistic.Worth(ChannelWorth::kQ, 1, head)[c], q_sum, 1e-3);
        EXPECT_NEAR(statistic.Worth(ChannelWorth::kK, 1, head)[c], k_sum, 1e-3);
        EXPECT_NEAR(statistic.Worth(ChannelWorth::kDiagonal, 1, head)[c], both, 1e-3);
        EXPECT_NEAR(statistic.Worth(ChannelWorth::kQk, 1, head)[c], all_pairs, 1e-4 * all_pairs);
      }
    }
    EXPECT_EQ(statistic.Worth(ChannelWorth::kQ, 0, 0), std::vector<double>(dim, 0.0));
  }
}

TEST(Calibration, WorthByAttentionIsItsDefinition) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    const ModelConfig model = Model(1, 1, 1 + seed % 3, 8);
    const uint32_t window = seed % 2 ? 100 : 0;
    const HeadSample s =
        RandomSample(model, 150 + 31 * static_cast<uint32_t>(seed), 5, window, seed);
    ChannelStatistic statistic(model);
    statistic.AddSample(s);
    for (uint32_t c = 0; c < 8; ++c) {
      double mass = 0, lift = 0, squares = 0, mean_all = 0, variance = 0;
      for (uint32_t t = 0; t < s.tokens; ++t) mean_all += s.Channel(c)[t] / double(s.tokens);
      for (uint32_t t = 0; t < s.tokens; ++t) {
        variance += std::pow(s.Channel(c)[t] - mean_all, 2) / s.tokens;
      }
      for (size_t i = 0; i < s.positions.size(); ++i) {
        const uint32_t present = s.positions[i] + 1;
        const uint32_t first = window > 0 && present > window ? present - window : 0;
        double mean = 0, free = 0;
        for (uint32_t t = first; t < present; ++t) {
          if (Always(t, present)) continue;
          mean += s.Channel(c)[t];
          ++free;
        }
        for (uint32_t h = 0; h < s.group; ++h) {
          squares += std::pow(s.Query(i, h)[c], 2);
          const auto a = SlowAttention(s, i, h);
          for (uint32_t t = first; t < present; ++t) {
            if (Always(t, present)) continue;
            mass += a[t] * std::fabs(s.Query(i, h)[c] * s.Channel(c)[t]);
            lift += s.Query(i, h)[c] * a[t] * (s.Channel(c)[t] - mean / free);
          }
        }
      }
      EXPECT_NEAR(statistic.Worth(ChannelWorth::kMass, 0, 0)[c], mass, 1e-3);
      EXPECT_NEAR(statistic.Worth(ChannelWorth::kLift, 0, 0)[c], lift, 1e-3);
      EXPECT_NEAR(statistic.Worth(ChannelWorth::kVariance, 0, 0)[c], squares * variance, 1e-2);
    }
  }
}

// Keys differ by noise in all channels but two, which the queries ask for; a third is large but the
// same in every key, and a fourth is large in keys but in no query.
TEST(Calibration, FindsPlantedChannels) {
  const ModelConfig model = Model(1, 1, 2, 16);
  HeadSample s = RandomSample(model, 600, 20, 0, 5);
  ChannelStatistic statistic(model);
  std::vector<float> k(s.keys.size());
  for (uint32_t t = 0; t < s.tokens; ++t) {
    for (uint32_t c = 0; c < 16; ++c) {
      float& key = s.keys[size_t{c} * s.tokens + t];
      key = c == 3 || c == 11 ? 3 * key : c == 7 ? 20.0f : c == 9 ? 30 * key : 0.3f * key;
      k[size_t{t} * 16 + c] = key;
    }
  }
  for (size_t i = 0; i < s.queries.size(); ++i) {
    s.queries[i] *= i % 16 == 3 || i % 16 == 11 ? 2.0f : i % 16 == 7 ? 1.0f : 0.05f;
  }
  statistic.AddSample(s);
  const auto order = statistic.Order({ChannelWorth::kLift, false}, 0, 0);
  EXPECT_EQ((std::set<uint16_t>{order[0], order[1]}), (std::set<uint16_t>{3, 11}));
  const auto pairs = statistic.Order({ChannelWorth::kLift, true}, 0, 0);
  EXPECT_EQ(pairs[0] % 8, 3);
  EXPECT_EQ(pairs[1], pairs[0] + 8);
  statistic.Add(0, s.queries.data(), k.data(), static_cast<uint32_t>(s.positions.size()));
  EXPECT_EQ(statistic.Order({ChannelWorth::kQk, false}, 0, 0)[0], 7);  // which tells nothing
}

// The script's own words, slowly: tensors, a reshape, the last block alone.
TEST(Calibration, PublishedStatisticsHaveTheirDefects) {
  for (Family family : {Family::kLlama, Family::kMistral}) {
    ModelConfig model = Model(1, 2, 2, 8);
    model.family = family;
    const uint32_t dim = 8, heads = 4, tokens = 13;
    const std::vector<float> frequencies = {1.0f, 0.3f, 0.1f, 0.01f};
    PublishedStatistic statistic(model, frequencies);
    std::vector<double> q_sums(heads * dim), k_sums(2 * dim), qk(heads * dim);
    for (uint64_t block = 0; block < 3; ++block) {
      const auto plain_q = RandomValues(tokens * heads * dim, block);
      const auto plain_k = RandomValues(tokens * 2 * dim, block + 50);
      auto turned = [&](std::vector<float> x, uint32_t n) {
        for (size_t i = 0; i < x.size(); i += dim) {
          for (uint32_t c = 0; c < 4; ++c) {
            const float angle = static_cast<float>(i / dim / n) * frequencies[c];
            const float a = x[i + c], b = x[i + c + 4];
            x[i + c] = a * std::cos(angle) - b * std::sin(angle);
            x[i + c + 4] = b * std::cos(angle) + a * std::sin(angle);
          }
        }
        return x;
      };
      const auto q = turned(plain_q, heads), k = turned(plain_k, 2);
      statistic.Add(0, q.data(), k.data(), tokens);
      for (size_t i = 0; i < q.size(); ++i) q_sums[i % (heads * dim)] += std::fabs(plain_q[i]);
      for (size_t i = 0; i < k.size(); ++i) k_sums[i % (2 * dim)] += std::fabs(plain_k[i]);
      const auto& used_q = family == Family::kLlama ? q : plain_q;
      const auto& used_k = family == Family::kLlama ? k : plain_k;
      std::vector<float> flat;  // [heads, tokens, dim]
      for (uint32_t h = 0; h < heads; ++h) {
        for (uint32_t t = 0; t < tokens; ++t) {
          for (uint32_t c = 0; c < dim; ++c) {
            flat.push_back(used_q[(t * heads + h) * dim + c] * used_k[(t * 2 + h / 2) * dim + c]);
          }
        }
      }
      std::ranges::fill(qk, 0.0);
      for (size_t i = 0; i < flat.size(); ++i) qk[i % (heads * dim)] += std::fabs(flat[i]);
    }
    auto expected = [&](const std::vector<double>& sums) {
      std::vector<uint16_t> orders;
      for (size_t i = 0; i < sums.size(); i += dim) {
        const auto order = OrderChannels({sums.begin() + i, sums.begin() + i + dim}, false);
        orders.insert(orders.end(), order.begin(), order.end());
      }
      return PoolOrders(orders, 2, dim);
    };
    EXPECT_EQ(statistic.Orders(ChannelWorth::kPublishedQ, 0), expected(q_sums));
    EXPECT_EQ(statistic.Orders(ChannelWorth::kPublishedK, 0), expected(k_sums));
    EXPECT_EQ(statistic.Orders(ChannelWorth::kPublishedQk, 0), expected(qk));
  }
}

// The serving operations' own reference chooses the rows.
double SlowRecall(const HeadSample& s, size_t i, const std::vector<uint16_t>& channels,
                  LabelFormat format, Pooling pooling, uint32_t denominator) {
  const uint32_t present = s.positions[i] + 1, first = s.Seen(i).first;
  const auto count = static_cast<uint32_t>(channels.size());
  const LabelLayout layout = {.layers = 1, .kv_heads = 1, .channels = count, .format = format};
  std::vector<std::vector<std::byte>> pages((present + kBlockTokens - 1) / kBlockTokens,
                                            std::vector<std::byte>(layout.page_bytes()));
  std::vector<std::byte*> table;
  for (auto& page : pages) table.push_back(page.data());
  for (uint32_t t = 0; t < present; ++t) {
    std::vector<float> label;
    for (uint16_t c : channels) label.push_back(s.Channel(c)[t]);
    StoreLabel(layout, table[t / kBlockTokens], t % kBlockTokens, label);
  }
  std::vector<float> scores(present);
  const ScoreLabelsArgs::Item item = {.tokens = present,
                                      .labels = {table.data(), &layout, 0},
                                      .scores = scores.data(),
                                      .first = first};
  reference::ScoreLabels({.q = s.Query(i, 0),
                          .kv_heads = 1,
                          .group = s.group,
                          .head_dim = s.head_dim,
                          .channels = channels.data(),
                          .pooling = pooling,
                          .score_stride = present,
                          .items = {&item, 1}});
  const uint32_t rows = RowBudget{0, denominator}.At(present, first);
  std::vector<uint32_t> selection(rows);
  const SelectArgs::Item select = {.scores = scores.data(),
                                   .tokens = present,
                                   .count = rows,
                                   .selection = selection.data(),
                                   .first = first};
  reference::Select(
      {.kv_heads = 1, .score_stride = present, .selection_stride = rows, .items = {&select, 1}});
  double sum = 0;
  for (uint32_t h = 0; h < s.group; ++h) {
    const auto a = SlowAttention(s, i, h);
    for (uint32_t t : selection) sum += a[t] / s.group;
  }
  return sum;
}

TEST(Calibration, RecallIsWhatTheServedSelectionCatches) {
  for (Pooling pooling : {Pooling::kMaxNormalised, Pooling::kSum, Pooling::kSoftmaxMass}) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      const ModelConfig model = Model(1, 1, 1 + seed % 3, 64);
      const HeadSample s = RandomSample(model, 700, 4, seed % 2 ? 400 : 0, seed);
      std::vector<double> worth(64);
      for (uint32_t c = 0; c < 64; ++c) worth[c] = (c * 7 + seed) % 64;
      const auto order = OrderChannels(worth, false);
      const std::vector<LabelChoice> choices = {{0, 8, LabelFormat::kBf16},
                                                {0, 3, LabelFormat::kBf16},
                                                {0, 8, LabelFormat::kInt8},
                                                {0, 13, LabelFormat::kInt4},
                                                {0, 16, LabelFormat::kInt2}};
      RecallMeter meter(
          model,
          {.orders = {order}, .choices = choices, .denominators = {2, 4}, .pooling = pooling});
      meter.Add(s);
      ASSERT_EQ(meter.queries(), 4u);
      for (size_t choice = 0; choice < choices.size(); ++choice) {
        const std::vector<uint16_t> channels(order.begin(),
                                             order.begin() + choices[choice].channels);
        for (size_t budget : {0u, 1u}) {
          double mean = 0;
          for (size_t i = 0; i < 4; ++i) {
            const double slow =
                SlowRecall(s, i, channels, choices[choice].format, pooling, budget ? 4 : 2);
            EXPECT_NEAR(meter.PerQuery(choice, budget)[i], slow, 1e-4);
            mean += slow / 4;
          }
          EXPECT_NEAR(meter.Mean(choice, budget), mean, 1e-4);
          EXPECT_GE(meter.Oracle(budget) + 1e-6, meter.Mean(choice, budget));
          EXPECT_LE(meter.AlwaysSet(budget), meter.Mean(choice, budget) + 1e-6);
        }
      }
    }
  }
}

}  // namespace
}  // namespace sparsekv
