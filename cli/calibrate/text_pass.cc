#include "cli/calibrate/text_pass.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "base/log.h"
#include "kernels/half.h"

namespace sparsekv {

namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

}  // namespace

void TextPass::ChooseQueries(uint32_t tokens) {
  positions_.clear();
  const uint32_t from = tokens - std::max(1u, tokens / options_.first_share);
  const uint32_t count = std::min(options_.queries, tokens - from);
  for (uint32_t i = 1; i <= count; ++i) {
    positions_.push_back(from + static_cast<uint32_t>(uint64_t{tokens - from} * i / count) - 1);
  }
}

void TextPass::Observe(const ModelConfig& config, uint32_t layer, const float* q, uint32_t position,
                       uint32_t tokens) {
  const size_t width = size_t{config.heads} * config.head_dim;
  const auto first = std::ranges::lower_bound(positions_, position);
  for (auto p = first; p != positions_.end() && *p < position + tokens; ++p) {
    const float* row = q + (*p - position) * width;
    queries_[layer].insert(queries_[layer].end(), row, row + width);
  }
}

HeadSample TextPass::MakeSample(LocalRunner& runner, uint32_t layer, uint32_t kv_head,
                                uint32_t tokens) const {
  const ModelConfig& config = runner.model().config();
  HeadSample sample = {.layer = layer,
                       .kv_head = kv_head,
                       .head_dim = config.head_dim,
                       .group = config.group(),
                       .window = config.window(layer),
                       .scale = config.attention_scale(),
                       .tokens = tokens,
                       .positions = positions_};
  const RowTable rows = runner.HostRows(layer, 0);
  sample.keys.resize(size_t{tokens} * config.head_dim);
  for (uint32_t t = 0; t < tokens; ++t) {
    const std::byte* row = rows.Row(kv_head, t);
    for (uint32_t c = 0; c < config.head_dim; ++c) {
      sample.keys[size_t{c} * tokens + t] = LoadValue(row, c, rows.layout->dtype);
    }
  }
  const size_t width = size_t{config.group()} * config.head_dim;
  for (size_t i = 0; i < positions_.size(); ++i) {
    const float* q = queries_[layer].data() + (i * config.kv_heads + kv_head) * width;
    sample.queries.insert(sample.queries.end(), q, q + width);
  }
  return sample;
}

void TextPass::ShowSamples(LocalRunner& runner, uint32_t tokens, const SampleSink& samples) const {
  const ModelConfig& config = runner.model().config();
  const uint32_t heads = config.layers * config.kv_heads;
  std::atomic<uint32_t> next = 0, done = 0;
  std::atomic<double> shown = 0;
  const auto begin = Clock::now();
  const auto work = [&] {
    for (uint32_t head; (head = next++) < heads;) {
      samples(MakeSample(runner, head / config.kv_heads, head % config.kv_heads, tokens));
      ++done;
      double last = shown;
      const double now = Seconds(begin);
      if (now - last > 5 && shown.compare_exchange_strong(last, now)) {
        spdlog::info("{}: looked at {} of {} heads", options_.name, done.load(), heads);
      }
    }
  };
  std::vector<std::jthread> others;
  for (unsigned i = 1; i < std::min(options_.threads, heads); ++i) others.emplace_back(work);
  work();
}

void TextPass::Run(LocalRunner& runner, std::span<const uint32_t> ids, const TokenSink& tokens,
                   const SampleSink& samples) {
  const ModelConfig& config = runner.model().config();
  uint32_t position = 0;
  runner.model().set_qk_observer(
      [&](uint32_t layer, const float* q, const float* k, uint32_t count) {
        if (tokens) tokens(layer, q, k, count);
        Observe(config, layer, q, position, count);
      });
  const auto begin = Clock::now();
  double shown = 0;
  for (size_t from = 0; from < ids.size(); from += options_.context) {
    const auto part = ids.subspan(from, std::min<size_t>(options_.context, ids.size() - from));
    ChooseQueries(static_cast<uint32_t>(part.size()));
    queries_.assign(config.layers, {});
    runner.Reset();
    for (size_t i = 0; i < part.size(); i += kChunk) {
      position = static_cast<uint32_t>(i);
      runner.Forward(part.subspan(i, std::min<size_t>(kChunk, part.size() - i)), RowBudget{});
      const double now = Seconds(begin);
      const size_t done = from + std::min<size_t>(i + kChunk, part.size());
      if (now - shown > 5 || done == ids.size()) {
        spdlog::info("{}: {} of {} tokens, {:.0f} s", options_.name, done, ids.size(), now);
        shown = now;
      }
    }
    if (samples && !positions_.empty()) {
      ShowSamples(runner, static_cast<uint32_t>(part.size()), samples);
    }
  }
  runner.model().set_qk_observer(nullptr);
}

}  // namespace sparsekv
