#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sparsekv {

// Which rows one sequence of a real run selected, step by step, and which were predicted: what a
// benchmark of another shape replays. A file: "SPKVTRC1", then uint32 layers, kv_heads, position of
// the first step, budget, steps; then per step, layer and KV head the two lists, each with its
// length before it. Little-endian.
class SelectionTrace {
 public:
  struct Facts {
    uint32_t layers = 0, kv_heads = 0, position = 0, budget = 0, steps = 0;
  };
  using List = std::vector<uint32_t>;

  explicit SelectionTrace(const Facts& facts)
      : facts_(facts), lists_(size_t{2} * facts.steps * facts.layers * facts.kv_heads) {}
  // DATA_LOSS or NOT_FOUND, with the file's name.
  static absl::StatusOr<SelectionTrace> Read(const std::string& path);
  absl::Status Write(const std::string& path) const;

  const Facts& facts() const { return facts_; }
  List& At(uint32_t step, uint32_t layer, uint32_t kv_head, bool predicted) {
    return lists_[((size_t{step} * facts_.layers + layer) * facts_.kv_heads + kv_head) * 2 +
                  predicted];
  }
  // The list for a layer of a model that may have more layers or heads than the trace.
  const List& For(uint32_t step, uint32_t layer, uint32_t kv_head, bool predicted) {
    const uint32_t like = layer < facts_.layers ? layer : 1 + (layer - 1) % (facts_.layers - 1);
    return At(step, like, kv_head % facts_.kv_heads, predicted);
  }

 private:
  Facts facts_;
  std::vector<List> lists_;
};

}  // namespace sparsekv
