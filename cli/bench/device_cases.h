#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/bench/bench_labels.h"
#include "cli/bench/device_bench.h"

namespace sparsekv {

// Which cases there are on a device, and how large.
struct DeviceGrid {
  struct Model {
    std::string name;
    uint32_t hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0, vocab = 0;

    uint32_t width() const { return heads * head_dim; }
    uint32_t kv_width() const { return kv_heads * head_dim; }
  };
  std::vector<Model> models;
  std::vector<uint32_t> batches;  // of products and of what is small
  std::vector<uint32_t> attention_batches;
  std::vector<uint32_t> contexts;
  uint32_t budget = 2048;  // beside a sixteenth of the context
  BenchLabels labels;
  uint32_t prompt_tokens = 2048;
  std::vector<uint32_t> prompt_positions;
  // Hot rows: lists of `budget` rows of a sequence of `hot_context` tokens.
  std::vector<uint32_t> hot_batches;
  std::vector<uint32_t> hot_slots;
  uint32_t hot_context = 32768;
  DeviceBench::Options bench;

  static DeviceGrid Usual();  // under a minute on a device of a server
  static DeviceGrid Full();
};

// Whether a case of a device has such a name.
bool DeviceCaseExists(const std::string& filter);

// Measures the grid's cases whose names contain grid.bench.filter, and the ceilings. Cases that do
// not fit into the pool are left out.
absl::StatusOr<BenchReport> BenchDevice(Backend& backend, const DeviceGrid& grid);

// The cases of one model each.
void BenchProducts(DeviceBench& bench, const DeviceGrid& grid, const DeviceGrid::Model& model);
void BenchAttention(DeviceBench& bench, const DeviceGrid& grid, const DeviceGrid::Model& model);
void BenchHotRows(DeviceBench& bench, const DeviceGrid& grid, const DeviceGrid::Model& model);
void BenchTokenwise(DeviceBench& bench, const DeviceGrid& grid, const DeviceGrid::Model& model);

}  // namespace sparsekv
