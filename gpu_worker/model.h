#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "gpu_worker/attention.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "gpu_worker/checkpoint/weights.h"
#include "gpu_worker/experts.h"
#include "gpu_worker/scratch.h"
#include "gpu_worker/step_item.h"
#include "gpu_worker/timeline.h"
#include "kernels/backend.h"

namespace sparsekv {

// The forward pass of a checkpoint. Belongs to the device thread; what it names
// outlives it. Holds no state of any sequence.
class Model {
 public:
  struct Options {
    const ModelConfig* config = nullptr;
    const Weights* weights = nullptr;
    Backend* backend = nullptr;
    Scratch scratch;
    Attention* attention = nullptr;
    Timeline* timeline = nullptr;  // null: nobody looks
  };
  explicit Model(const Options& options);

  // What a device does between the two is one step: some passes, logits, sampling. A device that
  // runs on its own has done nothing of it before EndStep returns; see kernels/backend.h.
  void BeginStep(StepKind kind);
  void EndStep();

  // Computes the step's tokens of every item, writes their rows and labels, and leaves the final
  // residual stream in place, items in order. REQUIRES: at most scratch.max_tokens tokens.
  void Forward(std::span<const StepItem> items);

  // One layer of a prompt's chunk: the item's tokens enter with the residual stream `hidden`,
  // [tokens, hidden_size] on the device (layer 0: with their embeddings), and leave it there.
  // Chunks of a layer come in order, layers too; the result is that of Forward, to the bit.
  void ForwardLayer(uint32_t layer, const StepItem& item, float* hidden);

  // Logits of the tokens [first, first + tokens) of the last pass, [tokens, vocab_size], on the
  // device, valid until the next call. REQUIRES: tokens <= scratch.max_logit_rows.
  const float* Logits(uint32_t first, uint32_t tokens);

  // Calibration: sees every layer's q [tokens, heads, head_dim] and k [tokens, kv_heads, head_dim]
  // after rotary embedding.
  using QkObserver =
      std::function<void(uint32_t layer, const float* q, const float* k, uint32_t tokens)>;
  void set_qk_observer(QkObserver observer) { observer_ = std::move(observer); }

  // Called after every layer of a forward pass, so that a long one shows that it goes on.
  void set_progress(std::function<void()> progress) {
    attention_->set_progress(progress);
    backend_->set_progress(progress);
    progress_ = std::move(progress);
  }

  const Experts& experts() const { return experts_; }
  const ModelConfig& config() const { return *config_; }
  Attention& attention() { return *attention_; }
  Backend& backend() { return *backend_; }
  const Scratch& scratch() const { return scratch_; }

  // The next pass compares the inputs of consecutive layers (LayerCounts::similarity_sum) and looks
  // at how good predictions are.
  void set_measure(bool measure);

 private:
  void BeginPass(std::span<const StepItem> items);
  void Layer(uint32_t layer);
  void MeasureSimilarity(uint32_t layer);
  void Project(uint32_t layer);
  void Mlp(uint32_t layer);
  void GateUp(const LayerWeights& layer);
  void AddBias(float* x, const WeightView& bias);                    // nothing where there is none
  void NormHeads(float* x, uint32_t heads, const WeightView& norm);  // likewise
  void Add(const float* x, const WeightView& weight);                // hidden += weight . x

  const ModelConfig* config_;
  const Weights* weights_;
  Backend* backend_;
  Scratch scratch_;
  Attention* attention_;
  Timeline* timeline_;
  Experts experts_;
  bool measure_ = false;

  // Of the pass in progress.
  uint32_t tokens_ = 0;
  std::vector<uint32_t> ids_;        // [tokens_]
  std::vector<uint32_t> positions_;  // [tokens_]
  std::vector<uint32_t> first_;      // [items], index of each item's first token
  float* hidden_ = nullptr;          // [tokens_, hidden_size]  the residual stream

  // Of the step in progress: similarities that scratch.cosines holds, by layer.
  std::vector<uint32_t> compared_;   // layers
  std::vector<float> cosines_seen_;  // [compared_, tokens_]

  std::function<void()> progress_;
  QkObserver observer_;
};

}  // namespace sparsekv
