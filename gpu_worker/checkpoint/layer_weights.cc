#include "gpu_worker/checkpoint/layer_weights.h"

#include <initializer_list>
#include <utility>

#include "base/concat.h"

namespace sparsekv {
namespace {

class Wants {
 public:
  Wants(std::string prefix, std::vector<WantedTensor>& wanted)
      : prefix_(std::move(prefix)), wanted_(wanted) {}

  void Matrix(const std::string& name, uint32_t rows, uint32_t cols, WeightView* view) {
    wanted_.push_back({Concat(prefix_, name, ".weight"), rows, cols, view});
  }
  void Vector(const std::string& name, uint32_t width, WeightView* view) {
    wanted_.push_back({Concat(prefix_, name), 0, width, view});
  }

 private:
  const std::string prefix_;
  std::vector<WantedTensor>& wanted_;
};

void WantAttention(const ModelConfig& c, LayerWeights& layer, Wants& wants) {
  const uint32_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  if (c.fused_projections) {
    wants.Matrix("self_attn.qkv_proj", q + 2 * kv, c.hidden_size, &layer.qkv);
  } else {
    wants.Matrix("self_attn.q_proj", q, c.hidden_size, &layer.wq);
    wants.Matrix("self_attn.k_proj", kv, c.hidden_size, &layer.wk);
    wants.Matrix("self_attn.v_proj", kv, c.hidden_size, &layer.wv);
  }
  wants.Matrix("self_attn.o_proj", c.hidden_size, q, &layer.wo);
  if (c.qkv_bias) {
    wants.Vector("self_attn.q_proj.bias", q, &layer.bq);
    wants.Vector("self_attn.k_proj.bias", kv, &layer.bk);
    wants.Vector("self_attn.v_proj.bias", kv, &layer.bv);
  }
  if (c.o_bias) wants.Vector("self_attn.o_proj.bias", c.hidden_size, &layer.bo);
  if (c.qk_norm) {
    wants.Vector("self_attn.q_norm.weight", c.head_dim, &layer.q_norm);
    wants.Vector("self_attn.k_norm.weight", c.head_dim, &layer.k_norm);
  }
}

void WantMlp(const ModelConfig& c, LayerWeights& layer, Wants& wants) {
  if (c.fused_projections) {
    wants.Matrix("mlp.gate_up_proj", 2 * c.intermediate_size, c.hidden_size, &layer.gate_up);
  } else {
    wants.Matrix("mlp.gate_proj", c.intermediate_size, c.hidden_size, &layer.gate);
    wants.Matrix("mlp.up_proj", c.intermediate_size, c.hidden_size, &layer.up);
  }
  wants.Matrix("mlp.down_proj", c.hidden_size, c.intermediate_size, &layer.down);
  if (!c.mlp_bias) return;
  wants.Vector("mlp.gate_proj.bias", c.intermediate_size, &layer.bgate);
  wants.Vector("mlp.up_proj.bias", c.intermediate_size, &layer.bup);
  wants.Vector("mlp.down_proj.bias", c.hidden_size, &layer.bdown);
}

void WantExperts(const ModelConfig& c, LayerWeights& layer, Wants& wants) {
  const bool mixtral = c.family == Family::kMixtral;
  const std::string block = mixtral ? "block_sparse_moe" : "mlp";
  wants.Matrix(block + ".gate", c.experts.count, c.hidden_size, &layer.router);
  layer.experts.resize(c.experts.count);
  for (uint32_t i = 0; i < c.experts.count; ++i) {
    const std::string expert = Concat(block, ".experts.", i, ".");
    ExpertWeights& to = layer.experts[i];
    const uint32_t width = c.experts.intermediate_size;
    wants.Matrix(expert + (mixtral ? "w1" : "gate_proj"), width, c.hidden_size, &to.gate);
    wants.Matrix(expert + (mixtral ? "w3" : "up_proj"), width, c.hidden_size, &to.up);
    wants.Matrix(expert + (mixtral ? "w2" : "down_proj"), c.hidden_size, width, &to.down);
  }
}

// Sets `views` to ranges of rows of the tensor, one after the other.
absl::Status Split(const char* name, const WeightView& fused,
                   std::initializer_list<std::pair<WeightView*, uint32_t>> views) {
  uint32_t first = 0;
  for (const auto& [view, rows] : views) {
    if (!CanBeginAt(fused, first)) {
      return absl::InvalidArgumentError(Concat(name, ": no codes of their own for the rows from ",
                                               first,
                                               ", which share a block or panel with those before"));
    }
    *view = RowRange(fused, first, rows);
    first += rows;
  }
  return absl::OkStatus();
}

}  // namespace

void WantLayer(const ModelConfig& config, uint32_t index, LayerWeights& layer,
               std::vector<WantedTensor>& wanted) {
  Wants wants(Concat("model.layers.", index, "."), wanted);
  wants.Vector("input_layernorm.weight", config.hidden_size, &layer.attention_norm);
  WantAttention(config, layer, wants);
  wants.Vector("post_attention_layernorm.weight", config.hidden_size, &layer.mlp_norm);
  if (config.has_experts(index)) {
    WantExperts(config, layer, wants);
  } else {
    WantMlp(config, layer, wants);
  }
}

absl::Status SplitFused(const ModelConfig& config, LayerWeights& layer) {
  if (!config.fused_projections) return absl::OkStatus();
  const uint32_t q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  const uint32_t wide = config.intermediate_size;
  absl::Status status =
      Split("qkv_proj", layer.qkv, {{&layer.wq, q}, {&layer.wk, kv}, {&layer.wv, kv}});
  if (!status.ok()) return status;
  return Split("gate_up_proj", layer.gate_up, {{&layer.gate, wide}, {&layer.up, wide}});
}

}  // namespace sparsekv
