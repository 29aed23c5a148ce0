#include "gpu_worker/device_weights.h"

#include <map>

#include "base/check.h"

namespace sparsekv {

namespace {

size_t Bytes(const WeightView& view) { return DeviceArena::Padded(WeightBytes(view)); }

// Calls visit(view) for every matrix.
template <typename AnyWeights, typename Visit>
void ForEach(AnyWeights& weights, const Visit& visit) {
  visit(weights.embed);
  for (auto& layer : weights.layers) ForEachView(layer, visit);
  visit(weights.norm);
  visit(weights.lm_head);
}

}  // namespace

size_t DeviceWeightBytes(const Weights& files) {
  std::map<const void*, size_t> bytes;  // a tied matrix once
  ForEach(files, [&](const WeightView& view) { bytes[view.data] = Bytes(view); });
  size_t total = 0;
  for (const auto& [data, size] : bytes) total += size;
  return total;
}

absl::StatusOr<std::unique_ptr<Weights>> CopyToDevice(const Weights& files, Backend* backend,
                                                      DeviceArena* arena) {
  auto all = arena->Take("weights", DeviceWeightBytes(files));
  if (!all.ok()) return all.status();
  std::byte* next = *all;
  std::unique_ptr<Weights> copy = Weights::MadeUp(files.row_dtype());
  copy->embed = files.embed;
  copy->layers = files.layers;
  copy->norm = files.norm;
  copy->lm_head = files.lm_head;
  std::map<const void*, std::byte*> copied;
  ForEach(*copy, [&](WeightView& view) {
    auto [found, fresh] = copied.emplace(view.data, next);
    if (fresh) {
      CHECK(view.plain());  // such devices refuse codes before
      backend->Upload(next, view.data, WeightBytes(view));
      next += Bytes(view);
    }
    view.data = found->second;
  });
  return copy;
}

}  // namespace sparsekv
