#include <algorithm>
#include <thread>

#include "cli/bench/bench.h"
#include "cli/bench/device_cases.h"
#include "cli/bench/kernel_bench.h"

namespace sparsekv {
namespace {

constexpr const char* kCaseNames[] = {"attend_dense",
                                      "attend_sparse",
                                      "score_labels",
                                      "score_select",
                                      "select",
                                      "attend_selection",
                                      "attend_prefill",
                                      "linear_decode",
                                      "linear_prefill",
                                      "linear_decode_int8",
                                      "linear_decode_int4",
                                      "linear_decode_fp8",
                                      "linear_prefill_int8",
                                      "linear_prefill_int4",
                                      "linear_prefill_fp8"};

// A measurement takes at least this long, so that the clock and waking threads do not show.
constexpr double kMinSeconds = 0.004;

// The times of one case over the rounds.
struct Times {
  uint32_t runs = 1;  // of a measurement
  uint32_t done = 0;
  std::vector<double> seconds;  // of one run
  std::vector<double> shares;
};

double MeasureOnce(const KernelCase& item, Times& times) {
  const auto start = std::chrono::steady_clock::now();
  for (uint32_t i = 0; i < times.runs; ++i) item.run(times.done++);
  return SecondsSince(start) / times.runs;
}

// How many runs a measurement needs. Also warms up what first use allocates.
void Prepare(const KernelCase& item, Times& times) {
  MeasureOnce(item, times);
  const double seconds = MeasureOnce(item, times);
  times.runs = static_cast<uint32_t>(std::clamp(kMinSeconds / seconds, 1.0, 1000.0));
}

// The ceilings as cases of their own, in the order in which MeasureCeilings names them.
void AddCeilings(const std::vector<KernelBench::Ceilings>& rounds, BenchReport* report) {
  const auto median = [&](const auto& rate_of) {
    std::vector<double> rates;
    for (const KernelBench::Ceilings& round : rounds) rates.push_back(rate_of(round));
    return Median(rates);
  };
  const double stream = median([](const auto& round) { return round.stream; });
  report->Add({.name = "ceiling_stream",
               .bytes = KernelBench::kMemory,
               .seconds_median = KernelBench::kMemory / stream,
               .ceiling_share = 1});
  for (size_t i = 0; i < std::size(KernelBench::kRowSizes); ++i) {
    const double rows = median([i](const auto& round) { return round.rows[i]; });
    report->Add({.name = "ceiling_random_rows",
                 .params = {{"row_bytes", KernelBench::kRowSizes[i]}},
                 .bytes = KernelBench::kMemory,
                 .seconds_median = KernelBench::kMemory / rows,
                 .ceiling_share = 1});
  }
  const double flops = median([](const auto& round) { return round.flops; });
  report->Add(
      {.name = "ceiling_fma", .flops = 1e9, .seconds_median = 1e9 / flops, .ceiling_share = 1});
}

absl::Status BenchCuda(const KernelBenchOptions& options) {
  std::string why;
  const std::unique_ptr<Backend> backend = MakeCudaBackend({}, &why);
  if (!backend) return absl::FailedPreconditionError(why);
  DeviceGrid grid = options.full ? DeviceGrid::Full() : DeviceGrid::Usual();
  grid.bench.filter = options.filter;
  grid.labels = options.labels;
  grid.bench.timing.rounds = options.rounds;
  const auto report = BenchDevice(*backend, grid);
  if (!report.ok()) return report.status();
  report->Print(options.json);
  return absl::OkStatus();
}

}  // namespace

bool KernelCaseExists(const KernelBenchOptions& options) {
  if (options.backend == "cuda") return DeviceCaseExists(options.filter);
  return std::any_of(std::begin(kCaseNames), std::end(kCaseNames), [&](const std::string& name) {
    return name.find(options.filter) != std::string::npos;
  });
}

absl::Status BenchKernels(const KernelBenchOptions& options) {
  if (options.backend == "cuda") return BenchCuda(options);
  const unsigned threads =
      options.threads > 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  KernelBench bench(threads);
  std::vector<KernelCase> cases;
  AddAttentionCases(bench, options.filter, options.labels, &cases);
  if (auto status = AddLinearCases(bench, options.filter, &cases); !status.ok()) return status;
  std::vector<Times> times(cases.size());
  for (size_t i = 0; i < cases.size(); ++i) Prepare(cases[i], times[i]);
  // Interleaved, so that what disturbs the machine for a while disturbs cases and ceilings alike.
  std::vector<KernelBench::Ceilings> ceilings;
  for (uint32_t round = 0; round < options.rounds; ++round) {
    ceilings.push_back(bench.MeasureCeilings());
    for (size_t i = 0; i < cases.size(); ++i) {
      const double seconds = MeasureOnce(cases[i], times[i]);
      times[i].seconds.push_back(seconds);
      if (cases[i].ideal) times[i].shares.push_back(cases[i].ideal(ceilings.back()) / seconds);
    }
  }
  BenchReport report;
  AddCeilings(ceilings, &report);
  for (size_t i = 0; i < cases.size(); ++i) {
    BenchCase item = std::move(cases[i].item);
    item.params["threads"] = threads;
    item.seconds_median = Median(times[i].seconds);
    if (!times[i].shares.empty()) item.ceiling_share = Median(times[i].shares);
    report.Add(std::move(item));
  }
  report.Print(options.json);
  return absl::OkStatus();
}

}  // namespace sparsekv
