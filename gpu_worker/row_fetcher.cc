#include "gpu_worker/row_fetcher.h"

namespace sparsekv {

ResolveArgs::Item ResolvePredicted(uint32_t layer, const RowFetcher::Request& request) {
  const StepItem& item = *request.item;
  return {.table = item.device->Slots(layer),
          .rows = request.rows,
          .count = request.count,
          .clear = item.device->shared(),
          .hit_stamp = 4 * item.position + 1,
          .miss_stamp = 4 * item.position,
          .useful_stamp = kNoToken,
          .slots = request.slots};
}

ResolveArgs::Item ResolveSelected(uint32_t layer, const RowFetcher::Request& request,
                                  bool predicted) {
  const StepItem& item = *request.item;
  return {.table = item.device->Slots(layer),
          .rows = request.rows,
          .count = request.count,
          .current = item.position,
          .clear = item.device->shared() && !predicted,
          .hit_stamp = 4 * item.position + 2,
          .miss_stamp = 4 * item.position + 2,
          .useful_stamp = 4 * item.position,
          .slots = request.slots};
}

}  // namespace sparsekv
