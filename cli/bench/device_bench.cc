#include "cli/bench/device_bench.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "cli/bench/kernel_bench.h"
#include "cli/bench/random_model.h"

namespace sparsekv {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kMostRuns = 1024;
// A device notes a step's arguments in memory of a fixed size, at up to some 400 bytes per item.
constexpr uint32_t kMostItems = 8192;  // in a step of N
// Rounds end early where a case takes long: its figure is steady then.
constexpr double kLongRounds = 0.5;
constexpr size_t kLeastRounds = 3;

// Made by the host, the rest are copies: in steps of 17 x 256, so that no page of a model's labels
// has another one's bytes. With 64 MiB each score came eight times, and the selection among equals
// takes three rounds more.
constexpr size_t kRandomBytes = (size_t{64} << 20) + 4352;
constexpr size_t kRandomFloats = size_t{1} << 20;

// Repeats the first `filled` bytes over all of them.
void Repeat(Backend& backend, std::byte* memory, size_t filled, size_t bytes) {
  while (filled < bytes) {
    const size_t more = std::min(filled, bytes - filled);
    backend.Copy(memory + filled, memory, more);
    filled += more;
  }
}

// N for steps of about `least_step` seconds. What is made on first use (graphs, scratch memory) is
// made by the first of two steps.
uint32_t FindRuns(const std::function<double(uint32_t)>& step, uint32_t most_runs,
                  double least_step) {
  for (uint32_t runs = 1;;) {
    step(runs);
    const double seconds = std::max(step(runs), 1e-7);
    if (seconds >= least_step || runs >= most_runs) return runs;
    // Too low while the step's own time is most of it, hence the loop.
    const double wanted = std::min(1.2 * runs * least_step / seconds, 1e6);
    runs = std::min(most_runs, std::max(2 * runs, static_cast<uint32_t>(wanted)));
  }
}

// Of the product ceiling's weights.
size_t ProductBytes(const DeviceBench::Options& options) {
  return size_t{2} * options.product * options.product;
}

}  // namespace

TimePerRun MeasureRuns(const std::function<double(uint32_t)>& step, uint32_t most_runs,
                       const StepTiming& timing) {
  const uint32_t runs = FindRuns(step, most_runs, timing.least_step);
  step(2 * runs);
  std::vector<double> differences, doubles;
  double spent = 0;
  for (uint32_t round = 0; round < timing.rounds; ++round) {
    if (round >= kLeastRounds && spent > kLongRounds) break;
    const double once = step(runs), twice = step(2 * runs);
    differences.push_back((twice - once) / runs);
    doubles.push_back(twice / (2 * runs));
    spent += once + twice;
  }
  // Noise can be more than what is measured, on a busy machine. Then this is what is known: it
  // takes no longer than that.
  const double difference = Median(differences);
  return {difference > 0 ? difference : Median(doubles), runs};
}

absl::StatusOr<std::unique_ptr<DeviceBench>> DeviceBench::Make(Backend& backend,
                                                               const Options& options) {
  std::unique_ptr<DeviceBench> bench(new DeviceBench(backend, options));
  // Whole pages of rows, so that a case can begin anywhere at one.
  bench->pool_bytes_ = std::min(options.pool_bytes, backend.free_bytes() / 10 * 6) /
                       RowLayout::kPage * RowLayout::kPage;
  const size_t least = std::max(2 * options.cold_bytes, ProductBytes(options));
  if (bench->pool_bytes_ < least) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the device has ", backend.free_bytes(), " bytes free, too few to measure"));
  }
  bench->pool_ = std::make_unique<DeviceArray<std::byte>>(backend, bench->pool_bytes_);
  bench->flush_ = std::make_unique<DeviceArray<std::byte>>(backend, options.cold_bytes);
  bench->FillPool();
  bench->MeasureCopy();
  bench->MeasureProduct();
  return bench;
}

void DeviceBench::FillPool() {
  std::vector<uint16_t> random(std::min(kRandomBytes, pool_bytes_) / sizeof(uint16_t));
  FillBf16(random.data(), random.size(), 1.0, 1);
  const size_t bytes = random.size() * sizeof(uint16_t);
  backend_.Upload(pool_->data(), random.data(), bytes);
  Repeat(backend_, pool_->data(), bytes, pool_bytes_);
}

// What the device's own copy reads and writes in a second.
void DeviceBench::MeasureCopy() {
  const size_t bytes = std::min(options_.copy_bytes, pool_bytes_ / 2);
  std::byte* from = pool_->data();
  BenchCase& measured =
      MeasureAlways({.item = {"ceiling_copy", {{"copied", bytes}}, 2.0 * double(bytes)},
                     .run = [&](uint32_t) { backend_.Copy(from + bytes, from, bytes); }});
  measured.ceiling_share = 1;
  copy_rate_ = measured.bytes / measured.seconds_median;
}

// The product of a prompt's chunk, in a shape that suits any library.
void DeviceBench::MeasureProduct() {
  const uint32_t n = options_.product;
  const WeightView weight = {pool_->data(), DType::kBF16, n, n};
  const auto x = NormalsOn(backend_, size_t{n} * n);
  const DeviceArray<float> y(backend_, size_t{n} * n);
  const LinearArgs args = {.x = x->data(), .tokens = n, .weight = weight, .y = y.data()};
  BenchCase& measured =
      MeasureAlways({.item = {"ceiling_product",
                              {{"tokens", n}, {"outputs", n}, {"inputs", n}, {"dtype", "bf16"}},
                              2.0 * n * n,
                              2.0 * n * n * n},
                     .kind = StepKind::kPrompt,
                     .run = [&](uint32_t) { backend_.Linear(args); }});
  measured.ceiling_share = 1;
  product_rate_ = measured.flops / measured.seconds_median;
}

// The copy at the start leaves nothing in the caches of what the step before it read. It is the
// same in steps of N and of 2N, so no part of the difference.
double DeviceBench::StepSeconds(const Case& one, uint32_t runs) {
  const size_t half = options_.cold_bytes / 2;
  auto start = Clock::now();
  backend_.BeginStep(one.kind);
  backend_.Copy(flush_->data() + half, flush_->data(), half);
  for (uint32_t i = 0; i < runs; ++i) one.run(i);
  // A device only noted all that. One whose memory is the host's has done it.
  if (!backend_.host_memory()) start = Clock::now();
  backend_.EndStep();
  return SecondsSince(start);
}

BenchCase* DeviceBench::Measure(const Case& one) {
  return Wants(one.item.name) ? &MeasureAlways(one) : nullptr;
}

BenchCase& DeviceBench::MeasureAlways(const Case& one) {
  const uint32_t most = std::clamp(kMostItems / one.items, 1u, kMostRuns);
  const TimePerRun time =
      MeasureRuns([&](uint32_t runs) { return StepSeconds(one, runs); }, most, options_.timing);
  BenchCase& item = cases_.emplace_back(one.item);
  item.params["runs"] = time.runs;
  item.seconds_median = time.seconds;
  if (one.limit == Limit::kCopy) item.ceiling_share = item.bytes / copy_rate_ / time.seconds;
  if (one.limit == Limit::kProduct) item.ceiling_share = item.flops / product_rate_ / time.seconds;
  // A device that fails ends the process: what was measured before that is here.
  spdlog::info("{} {}: {:.2f} us", item.name, item.params.dump(), time.seconds * 1e6);
  return item;
}

BenchReport DeviceBench::TakeReport() {
  BenchReport report{std::string(backend_.name())};
  for (BenchCase& item : cases_) report.Add(std::move(item));
  cases_.clear();
  return report;
}

std::unique_ptr<DeviceArray<float>> NormalsOn(Backend& backend, size_t count) {
  const std::vector<float> values = NormalValues(std::min(count, kRandomFloats), 7);
  auto array = std::make_unique<DeviceArray<float>>(backend, count);
  const size_t bytes = values.size() * sizeof(float);
  backend.Upload(array->data(), values.data(), bytes);
  Repeat(backend, reinterpret_cast<std::byte*>(array->data()), bytes, count * sizeof(float));
  return array;
}

std::vector<uint32_t> Shuffled(uint32_t count, uint32_t seed) {
  std::vector<uint32_t> values(count);
  std::iota(values.begin(), values.end(), 0u);
  std::shuffle(values.begin(), values.end(), std::mt19937(seed));
  return values;
}

}  // namespace sparsekv
