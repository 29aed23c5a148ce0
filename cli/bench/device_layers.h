#pragma once

#include <memory>
#include <vector>

#include "cli/bench/device_cases.h"

namespace sparsekv {

// The sequences of a batch, all with the same number of tokens, in as many layers as there is room
// for, and the operations of one layer over them. Rows and labels lie in the pool, their blocks and
// pages scattered. Run i takes layer i, other labels and other queries than the runs around it.
// Labels are what the pool holds. Read as codes, its values (bfloat16 below 2) give float16 steps
// and least values that are finite, of either sign, and codes that are mostly random bits.
class DeviceLayers {
 public:
  struct Size {
    uint32_t batch = 0, context = 0;
    uint32_t channels = 0;  // of a label; 0: no labels
    LabelFormat format = LabelFormat::kBf16;
    uint32_t queries = 1;  // tokens of each sequence in a step, the last ones of the context
  };
  // Null where one layer does not fit into the pool.
  static std::unique_ptr<DeviceLayers> Make(DeviceBench& bench, const DeviceGrid::Model& model,
                                            const Size& size);

  double row_bytes(uint32_t tokens) const {
    return double(size_.batch) * model_.kv_heads * tokens * double(rows_.row_bytes());
  }
  double label_bytes() const { return double(label_layer_bytes_); }
  double flops(uint32_t tokens) const { return 4.0 * size_.batch * model_.width() * tokens; }
  double score_flops() const {
    return 2.0 * size_.batch * model_.heads * size_.context * size_.channels;
  }

  // Makes the random lists, and room for selections.
  void SetBudget(uint32_t budget);

  void Score(uint32_t i);
  void Select();
  void ScoreSelect(uint32_t i);
  void AttendDense(uint32_t i);
  void AttendSelected(uint32_t i);  // what Select chose
  void AttendRandom(uint32_t i);    // lists that the host made
  void RotateAppend(uint32_t i);    // one token of each sequence

 private:
  DeviceLayers(DeviceBench& bench, const DeviceGrid::Model& model, const Size& size);
  std::vector<ScoreLabelsArgs::Item> ScoreItems(uint32_t i);
  std::vector<SelectArgs::Item> SelectItems();
  ScoreLabelsArgs Scoring(uint32_t i, std::span<const ScoreLabelsArgs::Item> items);
  SelectArgs Selecting(std::span<const SelectArgs::Item> items) const;
  void PlaceLabels();
  bool PlaceRows();
  void MakeTables();
  // Of each sequence; null = dense.
  void Attend(uint32_t i, const std::vector<const uint32_t*>& selections);
  uint32_t QuerySets() const;

  RowTable Rows(uint32_t i, uint32_t sequence) const;
  LabelTable Labels(uint32_t i, uint32_t sequence) const;
  float* Query(uint32_t i) const;
  size_t blocks() const { return size_.context / kBlockTokens; }  // of a sequence

  DeviceBench& bench_;
  Backend& backend_;
  const DeviceGrid::Model& model_;
  const Size size_;
  LabelLayout labels_;
  uint32_t label_sets_ = 1;  // as if there were so many batches: labels of one fit into a cache
  size_t label_layer_bytes_ = 0;
  RowLayout rows_;
  size_t rows_at_ = 0;  // in the pool; labels lie before
  uint32_t budget_ = 0;

  std::unique_ptr<DeviceArray<uint32_t>> block_table_;    // [sequences, blocks]
  std::unique_ptr<DeviceArray<std::byte*>> page_table_;   // [label_sets_, sequences, blocks]
  std::unique_ptr<DeviceArray<uint16_t>> channel_table_;  // [kv_heads, channels]
  std::unique_ptr<DeviceArray<float>> q_, k_, v_, out_, scores_;
  std::unique_ptr<DeviceArray<uint32_t>> selection_;  // [sequences, kv_heads, budget]
  std::unique_ptr<DeviceArray<uint32_t>> random_;     // [kLists + kv_heads, budget]
  std::vector<uint32_t> positions_;
  std::vector<float> inverse_frequency_;
};

}  // namespace sparsekv
