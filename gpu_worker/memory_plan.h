#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "base/limits.h"
#include "gpu_worker/channel_config.h"
#include "gpu_worker/checkpoint/model_config.h"

namespace sparsekv {

// How a worker deals with token rows.
struct RowMode {
  bool in_place = true;   // rows are attended where they lie; nothing below applies
  uint32_t hot_rows = 0;  // slots of an offloaded sequence per layer and KV head; 0 = double buffer
  bool predict = false;   // predictions may be asked for
};

// Tokens of one pass through a prompt. A plan asks in units of a cpu's; a device of its own does
// kDevicePrefillScale times as much in the time.
inline constexpr uint32_t kDevicePrefillScale = 4;
constexpr uint32_t PrefillUnitTokens(bool cuda) {
  return kPrefillUnitTokens * (cuda ? kDevicePrefillScale : 1);
}

// What operations keep between their parts, at most: partial results of attention over full
// batches, and of a prompt's products, with the library's workspace.
inline constexpr size_t kDeviceScratchBytes = size_t{160} << 20;

// How the device's memory is divided at start: a pure function of the model and the budget.
// Weights and activations come first; then labels and rows for as many sequences of the full
// context as fit; what is left makes room for more rows.
struct MemoryPlan {
  struct Request {
    size_t device_bytes = 0;
    uint32_t max_batch = 0;
    uint32_t prefill_unit_tokens = 0;
    RowMode rows;
    bool host_memory = true;  // the device's memory is the host's: weights and tables stay there
    size_t weight_bytes = 0;  // DeviceWeightBytes, else
    uint32_t selection = 0;   // rows of the largest selection to plan for; 0 = 1/16 of the context
    uint32_t row_blocks = 0;  // at most so many; 0 = as many as can be of use
  };

  uint32_t max_step_tokens = 0;   // tokens of one forward pass
  uint32_t max_batch = 0;         // sequences of one decode step
  uint32_t label_pages = 0;       // 0 without a channel config
  uint32_t selection_tokens = 0;  // see Scratch::Take
  uint32_t row_blocks = 0;        // of 64 rows in one layer; 0 in place
  uint32_t map_pages = 0;
  uint32_t prefill_tokens = 0;  // of one layer; 0 in place
  uint32_t set_slots = 0;       // slots that the sets of one layer can have together
  uint32_t landing_blocks = 0;  // of 64 rows: what a device of its own reads of one layer
  bool prediction = false;
  bool samples_recall = false;  // how much of dense attention selections hold
  size_t table_bytes = 0;       // of one sequence; 0 where tables stay where they are
  size_t scratch_bytes = 0;     // Backend::Reserve's
  size_t prompt_bytes = 0;  // the residual stream of a prompt that goes layer by layer; likewise
  // What each kind takes, padded as DeviceArena does.
  std::map<std::string, size_t> bytes_by_kind;

  size_t total_bytes() const;

  // RESOURCE_EXHAUSTED, with both figures, when not even one sequence of the model's full context
  // fits.
  static absl::StatusOr<MemoryPlan> Make(const ModelConfig& config, const ChannelConfig* channels,
                                         const Request& request);
};

}  // namespace sparsekv
