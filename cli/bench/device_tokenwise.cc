#include <algorithm>

#include "cli/bench/device_layers.h"
#include "cli/bench/kernel_bench.h"

// The small operations of a decode step. They are bound by what a launch takes, hardly by bytes;
// the figure holds the launch, inside a step that is known beforehand.
namespace sparsekv {
namespace {

constexpr uint32_t kContext = 2048;  // of the rows and labels that are appended to
constexpr float kDeviation = 3.0f;   // of logits

void BenchAppend(DeviceBench& bench, const DeviceGrid& grid, const DeviceGrid::Model& model,
                 uint32_t batch) {
  if (!bench.Wants("rotate_append")) return;
  const auto layers = DeviceLayers::Make(bench, model,
                                         {.batch = batch,
                                          .context = kContext,
                                          .channels = grid.labels.Channels(model.head_dim),
                                          .format = grid.labels.format});
  if (!layers) return;
  // q in and out, k and v in, k out, rows and labels.
  const double values = 2.0 * model.width() + 3.0 * model.kv_width();
  const double row = grid.labels.Bytes(model.head_dim) * model.kv_heads + 4.0 * model.kv_width();
  nlohmann::ordered_json params = {{"model", model.name}, {"batch", batch}, {"dtype", "bf16"}};
  grid.labels.Describe(model.head_dim, &params);
  bench.Measure({.item = {"rotate_append", params, batch * (4 * values + row)},
                 .items = 2 * batch,
                 .run = [&](uint32_t i) { layers->RotateAppend(i); }});
}

void BenchNorm(DeviceBench& bench, const DeviceGrid::Model& model, uint32_t batch) {
  if (!bench.Wants("rms_norm")) return;
  const auto x = NormalsOn(bench.backend(), size_t{batch} * model.hidden);
  const DeviceArray<float> out(bench.backend(), size_t{batch} * model.hidden);
  const WeightView weight = {bench.pool().data(), DType::kBF16, 1, model.hidden};
  bench.Measure({.item = {"rms_norm",
                          {{"model", model.name}, {"batch", batch}, {"hidden", model.hidden}},
                          double(model.hidden) * (8.0 * batch + 2)},
                 .run = [&](uint32_t) {
                   bench.backend().RmsNorm(
                       {.x = x->data(), .tokens = batch, .weight = weight, .out = out.data()});
                 }});
}

void BenchSample(DeviceBench& bench, const DeviceGrid::Model& model, uint32_t batch,
                 const char* how, const SampleParams& params) {
  if (!bench.Wants("sample")) return;
  std::vector<float> values = NormalValues(model.vocab, 8);
  for (float& value : values) value *= kDeviation;
  std::vector<float> logits;
  for (uint32_t s = 0; s < batch; ++s) logits.insert(logits.end(), values.begin(), values.end());
  const DeviceArray<float> on_device(bench.backend(), logits);
  std::vector<SampleArgs> args;
  for (uint32_t s = 0; s < batch; ++s) {
    args.push_back({.logits = on_device.data() + size_t{s} * model.vocab,
                    .vocab = model.vocab,
                    .position = 1000 + s,
                    .params = params});
  }
  std::vector<SampledToken> tokens(batch);
  bench.Measure(
      {.item = {"sample",
                {{"model", model.name}, {"how", how}, {"batch", batch}, {"vocab", model.vocab}},
                4.0 * batch * model.vocab},
       .items = batch,
       .run = [&](uint32_t) { bench.backend().Sample(args, tokens.data()); }});
}

}  // namespace

void BenchTokenwise(DeviceBench& bench, const DeviceGrid& grid, const DeviceGrid::Model& model) {
  for (uint32_t batch : grid.batches) {
    BenchAppend(bench, grid, model, batch);
    BenchNorm(bench, model, batch);
    BenchSample(bench, model, batch, "greedy", {});
    BenchSample(bench, model, batch, "top_p",
                {.temperature = 0.8f, .top_p = 0.9f, .top_k = 0, .seed = 9});
  }
}

}  // namespace sparsekv
