#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "gpu_worker/calibration_sample.h"
#include "gpu_worker/local_runner.h"

namespace sparsekv {

// Runs a text with dense attention, in contexts of its own, and shows what calibration looks at.
class TextPass {
 public:
  struct Options {
    std::string name;          // of the pass, for progress on stderr
    uint32_t context = 0;      // tokens of one; the last may be shorter
    uint32_t queries = 0;      // sampled of each context; 0: none
    uint32_t first_share = 1;  // queries lie in the last 1/N of a context, evenly
    unsigned threads = 1;      // over heads
  };
  using TokenSink = Model::QkObserver;
  using SampleSink = std::function<void(const HeadSample&)>;  // from several threads

  explicit TextPass(const Options& options) : options_(options) {}

  // `tokens` (may be empty) sees every token; `samples` every head of each context once.
  // Deterministic, whatever the number of threads. REQUIRES: the runner has room for a context.
  void Run(LocalRunner& runner, std::span<const uint32_t> ids, const TokenSink& tokens,
           const SampleSink& samples);

  static constexpr uint32_t kChunk = 512;

 private:
  void ChooseQueries(uint32_t tokens);
  void Observe(const ModelConfig& config, uint32_t layer, const float* q, uint32_t position,
               uint32_t tokens);
  void ShowSamples(LocalRunner& runner, uint32_t tokens, const SampleSink& samples) const;
  HeadSample MakeSample(LocalRunner& runner, uint32_t layer, uint32_t kv_head,
                        uint32_t tokens) const;

  const Options options_;
  std::vector<uint32_t> positions_;          // of the context in progress, ascending
  std::vector<std::vector<float>> queries_;  // [layers][positions, heads, head_dim]
};

}  // namespace sparsekv
