#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "kernels/matrix.h"

namespace sparsekv {

// One expert of a layer: down . (silu(gate . n) * (up . n)).
struct ExpertWeights {
  WeightView gate;  // [expert intermediate, hidden]
  WeightView up;    // [expert intermediate, hidden]
  WeightView down;  // [hidden, expert intermediate]
};

// The weights of one layer. What a family does not have has no data.
struct LayerWeights {
  WeightView attention_norm;  // [1, hidden]
  WeightView wq;              // [heads * head_dim, hidden]
  WeightView wk;              // [kv_heads * head_dim, hidden]
  WeightView wv;              // [kv_heads * head_dim, hidden]
  WeightView wo;              // [hidden, heads * head_dim]
  WeightView mlp_norm;        // [1, hidden]
  WeightView gate;            // [intermediate, hidden]; with `up`, `down` none beside experts
  WeightView up;              // [intermediate, hidden]
  WeightView down;            // [hidden, intermediate]

  WeightView bq, bk, bv, bo;     // biases, [1, rows of the matrix]
  WeightView bgate, bup, bdown;  // likewise
  WeightView q_norm, k_norm;     // [1, head_dim], of every head
  WeightView router;             // [experts, hidden]
  std::vector<ExpertWeights> experts;

  // Where a family stores them as one tensor, of which the views above are ranges of rows.
  WeightView qkv;      // [wq | wk | wv]
  WeightView gate_up;  // [gate | up]
};

// A tensor that the model needs, and where its view goes.
struct WantedTensor {
  std::string name;
  uint32_t rows;  // 0: a vector of `cols`
  uint32_t cols;
  WeightView* view;
};

// Appends the tensors of a layer, in one fixed order, which the fingerprint follows. `layer` stays
// where it is until they are bound.
void WantLayer(const ModelConfig& config, uint32_t index, LayerWeights& layer,
               std::vector<WantedTensor>& wanted);

// Once they are: the ranges of fused tensors. The error names the tensor.
absl::Status SplitFused(const ModelConfig& config, LayerWeights& layer);

// Calls visit(view) for every matrix and vector that the forward pass reads.
template <typename AnyLayer, typename Visit>
void ForEachView(AnyLayer& layer, const Visit& visit) {
  for (auto* view :
       {&layer.attention_norm, &layer.wq, &layer.wk, &layer.wv, &layer.wo, &layer.mlp_norm,
        &layer.gate, &layer.up, &layer.down, &layer.bq, &layer.bk, &layer.bv, &layer.bo,
        &layer.bgate, &layer.bup, &layer.bdown, &layer.q_norm, &layer.k_norm, &layer.router}) {
    if (view->data != nullptr) visit(*view);
  }
  for (auto& expert : layer.experts) {
    for (auto* view : {&expert.gate, &expert.up, &expert.down}) visit(*view);
  }
}

}  // namespace sparsekv
