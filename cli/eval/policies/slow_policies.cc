#include "cli/eval/policies/slow_policies.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <set>

#include "kernels/label_query.h"

namespace sparsekv::slow {

namespace {

double Dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t c = 0; c < a.size(); ++c) sum += a[c] * b[c];
  return sum;
}

Rows LastOf(uint32_t tokens, uint32_t count) {
  Rows rows;
  for (uint32_t t = 0; t < tokens; ++t) {
    if (t + count >= tokens) rows.push_back(t);
  }
  return rows;
}

// Positions in order of their scores; ties to the lower index.
Rows Sorted(const Vector& scores) {
  Rows order = All(static_cast<uint32_t>(scores.size()));
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
  return order;
}

}  // namespace

Rows All(uint32_t tokens) {
  Rows rows;
  for (uint32_t t = 0; t < tokens; ++t) rows.push_back(t);
  return rows;
}

Vector Softmax(const Vector& scores) {
  double sum = 0;
  for (double s : scores) sum += std::exp(s);
  Vector out;
  for (double s : scores) out.push_back(std::exp(s) / sum);
  return out;
}

Vector Attention(const Matrix& q, const Matrix& keys, const Rows& rows) {
  Vector mean(rows.size(), 0.0);
  for (const Vector& head : q) {
    Vector scores;
    for (uint32_t t : rows) {
      scores.push_back(Dot(head, keys[t]) / std::sqrt(static_cast<double>(head.size())));
    }
    const Vector attention = Softmax(scores);
    for (size_t i = 0; i < rows.size(); ++i) {
      mean[i] += attention[i] / static_cast<double>(q.size());
    }
  }
  return mean;
}

Rows Best(const Vector& scores, uint32_t count, const Rows& forced) {
  std::set<uint32_t> chosen(forced.begin(), forced.end());
  for (uint32_t t : Sorted(scores)) {
    if (chosen.size() >= count) break;
    chosen.insert(t);
  }
  return {chosen.begin(), chosen.end()};
}

Rows Oracle(const Matrix& q, const Matrix& keys, uint32_t count) {
  return Best(Attention(q, keys, All(static_cast<uint32_t>(keys.size()))), count, {});
}

Rows DoubleSparsity(const Matrix& q, const Matrix& keys, const std::vector<uint32_t>& channels,
                    uint32_t count, uint32_t sinks, uint32_t recent) {
  const auto tokens = static_cast<uint32_t>(keys.size());
  Vector scores(tokens, -1e300);
  for (const Vector& head : q) {
    // Queries are rounded as a worker rounds them: a near tie is decided by what it multiplies.
    float squares = 0;
    for (uint32_t c : channels) squares += static_cast<float>(head[c] * head[c]);
    for (uint32_t t = 0; t < tokens; ++t) {
      double score = 0;
      for (uint32_t c : channels) {
        score += LabelQuery(static_cast<float>(head[c]) / std::sqrt(squares)) * keys[t][c];
      }
      scores[t] = std::max(scores[t], score);
    }
  }
  Rows forced = LastOf(tokens, recent);
  for (uint32_t t = 0; t < std::min(sinks, tokens); ++t) forced.push_back(t);
  return Best(scores, count, forced);
}

Rows StreamingLlm(uint32_t tokens, uint32_t count, uint32_t sinks) {
  Rows rows;
  for (uint32_t t = 0; t < tokens; ++t) {
    if (t < sinks || t + (count - sinks) >= tokens) rows.push_back(t);
  }
  return rows;
}

Rows Sparq(const Matrix& q, const Matrix& keys, uint32_t r, uint32_t count, uint32_t local,
           Vector* share) {
  Vector size(q[0].size(), 0.0);
  for (const Vector& head : q) {
    for (size_t c = 0; c < head.size(); ++c) size[c] += std::abs(head[c]);
  }
  const Rows channels = Best(size, r, {});
  Matrix approximate;
  Vector sum(keys.size(), 0.0);
  for (const Vector& head : q) {
    double all = 0, taken = 0;
    for (double x : head) all += std::abs(x);
    for (uint32_t c : channels) taken += std::abs(head[c]);
    Vector scores;
    for (const Vector& key : keys) {
      double score = 0;
      for (uint32_t c : channels) score += head[c] * key[c];
      scores.push_back(score / std::sqrt(static_cast<double>(head.size()) * taken / all));
    }
    approximate.push_back(Softmax(scores));
    for (size_t t = 0; t < keys.size(); ++t) sum[t] += approximate.back()[t];
  }
  const Rows rows = Best(sum, count, LastOf(static_cast<uint32_t>(keys.size()), local));
  share->clear();
  for (const Vector& attention : approximate) {
    share->push_back(0);
    for (uint32_t t : rows) share->back() += attention[t];
  }
  return rows;
}

Rows Quest(const Matrix& q, const Matrix& keys, uint32_t page, uint32_t count) {
  const auto tokens = static_cast<uint32_t>(keys.size());
  const uint32_t pages = (tokens + page - 1) / page;
  Vector bounds(pages, 0.0);
  for (uint32_t p = 0; p < pages; ++p) {
    for (const Vector& head : q) {
      for (size_t c = 0; c < head.size(); ++c) {
        double low = 1e300, high = -1e300;
        for (uint32_t t = p * page; t < std::min(tokens, (p + 1) * page); ++t) {
          low = std::min(low, keys[t][c]);
          high = std::max(high, keys[t][c]);
        }
        bounds[p] += std::max(head[c] * low, head[c] * high);
      }
    }
  }
  uint32_t wanted = 1;  // with the last one, as many whole pages as keep within the count
  while (wanted < pages && tokens - (pages - 1) * page + wanted * page <= count) ++wanted;
  Rows rows;
  for (uint32_t p : Best(bounds, wanted, {pages - 1})) {
    for (uint32_t t = p * page; t < std::min(tokens, (p + 1) * page); ++t) rows.push_back(t);
  }
  return rows;
}

// While too many are there, the one that received least goes, unless it is among the newest.
Rows H2o::Step(const Matrix& q, const Matrix& keys, uint32_t count) {
  const auto current = static_cast<uint32_t>(keys.size()) - 1;
  cache.push_back(current);
  received.resize(keys.size(), 0.0);
  while (cache.size() > count) {
    const size_t old = cache.size() - std::max(1u, count / 2);
    size_t least = 0;
    for (size_t i = 1; i < old; ++i) {
      if (received[cache[i]] < received[cache[least]]) least = i;
    }
    cache.erase(cache.begin() + static_cast<ptrdiff_t>(least));
  }
  const Vector attention = Attention(q, keys, cache);
  for (size_t i = 0; i < cache.size(); ++i) received[cache[i]] += attention[i];
  return cache;
}

void Scissorhands::Remember(const Vector& attention, const Rows& rows, uint32_t tokens) {
  std::vector<bool> step(tokens, false);
  for (size_t i = 0; i < rows.size(); ++i) {
    step[rows[i]] = attention[i] < 1.0 / static_cast<double>(rows.size());
  }
  low.push_back(step);
}

Rows Scissorhands::Step(const Matrix& q, const Matrix& keys, uint32_t count) {
  const auto tokens = static_cast<uint32_t>(keys.size());
  cache.push_back(tokens - 1);
  if (cache.size() > count) {
    const auto keep = std::max(1u, count - static_cast<uint32_t>(drop * count));
    // Counted over the last steps; the newest rows count as never low. The oldest of the worst go.
    while (cache.size() > keep) {
      size_t worst = 0, worst_count = 0;
      for (size_t i = 0; i + std::min(recent, keep) < cache.size(); ++i) {
        size_t times = 0;
        for (size_t s = low.size() - std::min<size_t>(history, low.size()); s < low.size(); ++s) {
          times += cache[i] < low[s].size() && low[s][cache[i]];
        }
        if (i == 0 || times > worst_count) {
          worst = i;
          worst_count = times;
        }
      }
      cache.erase(cache.begin() + static_cast<ptrdiff_t>(worst));
    }
  }
  Remember(Attention(q, keys, cache), cache, tokens);
  return cache;
}

Rows FastGen(const std::vector<int>& kinds, const Matrix& maps, uint32_t tokens, uint32_t count,
             double recovery) {
  const auto prompt = static_cast<uint32_t>(maps.back().size());
  Vector received(prompt, 0.0);
  for (const Vector& map : maps) {
    for (size_t t = 0; t < map.size(); ++t) received[t] += map[t];
  }
  const Rows best = Best(received, std::min(count / 2, prompt), {});
  const std::set<uint32_t> frequent(best.begin(), best.end());
  const auto keeps = [&](int level, uint32_t t, uint32_t present) {
    if (level == 5 || kinds[t] == 1) return true;
    if (level >= 2 && kinds[t] == 2) return true;
    if (level >= 3 && frequent.contains(t)) return true;
    return level >= 4 && present - t <= count / 2;
  };
  int level = 1;
  for (; level < 5; ++level) {
    double kept = 0;
    for (const Vector& map : maps) {
      for (uint32_t t = 0; t < map.size(); ++t) {
        if (keeps(level, t, static_cast<uint32_t>(map.size()))) kept += map[t];
      }
    }
    if (kept / static_cast<double>(maps.size()) >= recovery) break;
  }
  Rows rows;
  for (uint32_t t = 0; t < tokens; ++t) {
    if (t == tokens - 1 || keeps(level, t, tokens)) rows.push_back(t);
  }
  return rows;
}

}  // namespace sparsekv::slow
