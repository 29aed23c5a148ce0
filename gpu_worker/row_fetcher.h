#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "gpu_worker/step_item.h"
#include "kernels/backend.h"

namespace sparsekv {

// Brings rows of offloaded sequences into their slots: predicted ones ahead of their layer, missing
// ones when it is there or once they were attended. What is attended is decided elsewhere; this
// only sees to it that the rows of a list are found, and counts. Belongs to the device thread.
//
// Stamps of the step at position s (kernels/hot_rows.h): 4s = brought by its prediction, 4s+1 =
// predicted and there already, 4s+2 = selected. So a step's own rows are never its victims, and
// what was used outlives what was only guessed.
class RowFetcher {
 public:
  virtual ~RowFetcher() = default;

  // Rows that one item of the step wants in one layer.
  struct Request {
    uint32_t index = 0;  // of the item
    const StepItem* item = nullptr;
    const uint32_t* rows = nullptr;  // [kv_heads, stride], tokens, ascending
    uint32_t count = 0;
    uint32_t* slots = nullptr;     // [kv_heads, stride], out
    RowMove* misses = nullptr;     // [kv_heads, stride]
    Resolved* resolved = nullptr;  // [kv_heads]
  };

  virtual void BeginStep(size_t items) = 0;

  // Gives the predicted rows slots and starts to fetch those that are not there, or will when the
  // layer before has been attended. `keep`: their slots will be asked for (Predicted). May be
  // called for several parts of a batch.
  virtual void Prefetch(uint32_t layer, std::span<const Request> requests, size_t stride,
                        bool keep) = 0;

  // The layer begins: its prefetch ends, and what is not here is forgotten (on a device that looks
  // after it itself, when the layer is attended); `finish` waits for all of it instead. Returns the
  // seconds waited, as far as they are known yet.
  virtual double Settle(uint32_t layer, bool finish, LayerCounts* counts) = 0;

  // Before lists of the layer are made where earlier ones of this step were.
  virtual void BeginLists(uint32_t layer) = 0;

  // Says where attention finds the rows: sets rows, selection and offloaded of attend[i], which is
  // requests[i]'s. Either they are in `slots` then, fetched direct and waited for, and the item's
  // current token has a slot, not a row; or attention itself reads from the segment what is
  // missing.
  virtual void Bring(uint32_t layer, std::span<const Request> requests, size_t stride,
                     std::span<AttendArgs::Item> attend, LayerCounts* counts) = 0;
  // They have been attended. What attention has read gets slots, beside what follows; the lists are
  // read until BeginLists.
  virtual void GiveSlots() = 0;
  // All of the layer has been attended: the link is free for what was predicted.
  virtual void EndLayer(uint32_t layer) = 0;

  // Brings rows [first, tokens) of the item into `to`, whose row i is token i: a dense sequence's
  // layer, or what its window leaves of it. Null: they are attended where they lie, and come over
  // the link all the same (where the device's memory is the host's).
  virtual void Stream(uint32_t layer, const StepItem& item, uint32_t first, uint32_t tokens,
                      const RowTable* to, LayerCounts* counts) = 0;

  // Inside the step, after its last layer: asks for what the device noted.
  virtual void FetchNotes() = 0;
  // The step's operations are complete: what only now is known is counted, [layers].
  virtual void EndStep(std::vector<LayerCounts>* counts) = 0;

  // Whether the item was predicted in this layer of this step, and what became of it: the slots,
  // with room for one more. REQUIRES: `keep` in Prefetch, and that it was settled.
  struct Prediction {
    uint32_t* slots = nullptr;  // [kv_heads, stride]; the first `count` of each are there
    size_t stride = 0;
    uint32_t count = 0;
    uint64_t brought = 0;  // rows, of all KV heads, that were not there before
  };
  virtual bool predicted(uint32_t layer, uint32_t index) const = 0;
  virtual Prediction Predicted(uint32_t layer, uint32_t index) const = 0;

  virtual uint64_t direct_bytes() const = 0;  // read so far, by the step itself
};

// What Resolve is asked for a prediction, and for a selection. `misses` and `resolved` are the
// caller's to set.
ResolveArgs::Item ResolvePredicted(uint32_t layer, const RowFetcher::Request& request);
ResolveArgs::Item ResolveSelected(uint32_t layer, const RowFetcher::Request& request,
                                  bool predicted);

// Of a row set's slot, in the lists of predictions.
inline size_t ListBytesPerSlot(uint32_t kv_heads) {
  return 2 * kv_heads * (sizeof(RowMove) + sizeof(uint32_t));
}

}  // namespace sparsekv
