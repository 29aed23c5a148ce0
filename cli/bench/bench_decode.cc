#include "cli/bench/bench_decode.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "cli/bench/ceilings.h"
#include "cli/bench/decode_source.h"
#include "cli/bench/report.h"
#include "gpu_worker/local_runner.h"
#include "kernels/half.h"

namespace sparsekv {

namespace {

using Clock = std::chrono::steady_clock;

struct Case {
  bool predict = false;
  uint32_t hot_rows = 0;
  bool gather = false;
};

std::vector<Case> Cases(const DecodeBenchOptions& o) {
  if (o.dense) return {Case{}};
  std::vector<Case> cases;
  for (const std::string& hot : o.hot_rows) {
    for (const std::string& predict : o.predict) {
      for (const std::string& fetch : o.fetch) {
        if (fetch == "gather" && predict == "off") continue;  // it serves predictions only
        cases.push_back({predict == "on", hot == "off" ? 0 : static_cast<uint32_t>(std::stoul(hot)),
                         fetch == "gather"});
      }
    }
  }
  return cases;
}

// The sums of all layers.
LayerCounts Total(const std::vector<LayerCounts>& layers) {
  LayerCounts total;
  for (const LayerCounts& layer : layers) {
    total.rows.selected += layer.rows.selected;
    total.rows.hits += layer.rows.hits;
    total.rows.prefetched += layer.rows.prefetched;
    total.rows.useful += layer.rows.useful;
    total.rows.missed += layer.rows.missed;
    total.rows.stall_s += layer.rows.stall_s;
    total.cut += layer.cut;
    total.predicted += layer.predicted;
    total.predicted_selected += layer.predicted_selected;
    total.similarity_sum += layer.similarity_sum;
    total.similarity_count += layer.similarity_count;
  }
  return total;
}

constexpr size_t kStreamBytes = size_t{512} << 20;

double Share(double part, double whole) { return whole > 0 ? part / whole : 0; }

class DecodeBench {
 public:
  DecodeBench(const DecodeBenchOptions& options, DecodeSource* source)
      : o_(options), source_(*source) {}

  absl::Status Run();

 private:
  absl::StatusOr<std::unique_ptr<LocalRunner>> MakeRunner(const Case* one, Timeline* timeline);
  absl::Status RunCase(const Case& one);
  void MeasureStream();
  BenchCase Describe(const Case& one, LocalRunner& runner, std::vector<double> seconds) const;
  // The bytes that a step must read at least, and its arithmetic.
  void CountWork(size_t row_bytes, BenchCase* item) const;

  const DecodeBenchOptions& o_;
  DecodeSource& source_;
  BenchReport report_;
  std::unique_ptr<LocalRunner> base_;
  std::vector<std::byte> stream_memory_;
  std::vector<double> streams_;  // bytes per second, before and after the case's steps
};

absl::StatusOr<std::unique_ptr<LocalRunner>> DecodeBench::MakeRunner(const Case* one,
                                                                     Timeline* timeline) {
  LocalRunner::Options options{.max_tokens = o_.context,
                               .sequences = o_.batch,
                               .threads = o_.threads,
                               .selection = o_.dense ? 0 : o_.budget,
                               .timeline = timeline};
  if (one != nullptr) {
    options.rows = {.in_place = false, .hot_rows = one->hot_rows, .predict = one->predict};
    options.backend = BackendFor(o_.backend, source_.files());
    options.graphs = o_.graphs;
    options.early_launch = o_.early_launch;
    options.mirror_rows = o_.mirror_rows;
    if (o_.placement == "resident") options.placement = RowPlacement::kResident;
    options.link = o_.link;
    options.gather = one->gather;
  }
  return LocalRunner::Make(source_.files(), options);
}

absl::Status DecodeBench::Run() {
  auto base = MakeRunner(nullptr, nullptr);
  if (!base.ok()) return base.status();
  base_ = *std::move(base);
  if (absl::Status status = source_.Prepare(*base_); !status.ok()) return status;
  for (const Case& one : Cases(o_)) {
    if (absl::Status status = RunCase(one); !status.ok()) return status;
  }
  report_.Print(o_.json);
  return absl::OkStatus();
}

// What a step's bytes are compared with: memory that no cache holds, read from end to end.
void DecodeBench::MeasureStream() {
  cpu::ThreadPool pool(std::max(1u, o_.threads ? o_.threads : std::thread::hardware_concurrency()));
  stream_memory_.resize(kStreamBytes, std::byte{1});
  for (int i = 0; i < 5; ++i) {
    streams_.push_back(static_cast<double>(kStreamBytes) / StreamRead(pool, stream_memory_));
  }
}

// What of a step the host does while the device does nothing, and what it gives the device. The
// median: a step that is made a graph takes the host milliseconds, once.
void DescribeHost(const StepWork& before, const StepWork& after, std::vector<double> seconds,
                  BenchCase* item) {
  const uint64_t steps = after.steps - before.steps;
  if (steps == 0) return;
  item->params["host_us_per_step"] = std::round(1e6 * Median(std::move(seconds)));
  item->params["operations_per_step"] =
      std::round(double(after.operations - before.operations) / double(steps));
}

absl::Status DecodeBench::RunCase(const Case& one) {
  Timeline timeline;
  auto made = MakeRunner(&one, o_.timeline.empty() ? nullptr : &timeline);
  if (!made.ok()) return made.status();
  LocalRunner& runner = **made;
  runner.CopyFrom(*base_);
  const uint32_t layers = source_.files().config.layers;
  std::vector<LayerPolicy> policies(layers, {one.predict, o_.prefetch_percent, !o_.corrected});
  policies[0].predict = false;
  runner.device().attention->set_policies(policies);
  std::vector<double> seconds, host_seconds;
  streams_.clear();
  MeasureStream();
  StepWork before;
  for (uint32_t step = 0; step < o_.warmup + o_.steps; ++step) {
    if (step == o_.warmup) {
      runner.device().attention->counts().assign(layers, LayerCounts{});
      before = runner.device().backend->decode_work();
    }
    timeline.Clear();
    runner.model().set_measure(step + 1 == o_.warmup + o_.steps / 2);
    const double waited = runner.device().backend->decode_work().wait_s;
    const auto begin = Clock::now();
    source_.Step(runner, step, o_.row_budget());
    const double took = std::chrono::duration<double>(Clock::now() - begin).count();
    if (step < o_.warmup) continue;
    seconds.push_back(took);
    host_seconds.push_back(took - (runner.device().backend->decode_work().wait_s - waited));
  }
  MeasureStream();
  BenchCase item = Describe(one, runner, seconds);
  DescribeHost(before, runner.device().backend->decode_work(), host_seconds, &item);
  report_.Add(std::move(item));
  if (o_.timeline.empty()) return absl::OkStatus();
  return timeline.Write(o_.timeline);
}

BenchCase DecodeBench::Describe(const Case& one, LocalRunner& runner,
                                std::vector<double> seconds) const {
  const std::vector<LayerCounts>& layers = runner.device().attention->counts();
  const LayerCounts total = Total(layers);
  const RowCounts& rows = total.rows;
  const double needed = static_cast<double>(rows.useful + rows.missed);
  const double steps = o_.steps;
  const size_t row_bytes = runner.segment().layout().row_bytes();
  BenchCase item;
  item.name = absl::StrCat("decode/", one.hot_rows ? absl::StrCat("hot ", one.hot_rows) : "no hot",
                           one.predict ? "/predict" : "", one.gather ? "/gather" : "",
                           o_.mirror_rows ? "/mirror" : "");
  const LabelFormat labels = source_.files().channels->label_format;
  if (labels != LabelFormat::kBf16 && !o_.dense) {
    absl::StrAppend(&item.name, "/", std::string(Name(labels)), " labels");
  }
  auto round3 = [](double value) { return std::round(value * 1000) / 1000; };
  item.params["hit_rate"] = round3(Share(double(rows.hits), double(rows.selected)));
  // Of the bytes that would have been waited for without prediction, those that were not.
  item.params["hidden_share"] = round3(Share(double(rows.useful), needed));
  item.params["useful_share"] = round3(Share(double(rows.useful), double(rows.prefetched)));
  item.params["prediction_overlap"] =
      round3(Share(double(total.predicted_selected), double(total.predicted)));
  item.params["layer_similarity"] = round3(Share(total.similarity_sum, total.similarity_count));
  item.params["fetched_mb_per_step"] =
      round3(double(rows.fetched()) * double(row_bytes) / 1e6 / steps);
  item.params["missed_mb_per_step"] = round3(double(rows.missed) * double(row_bytes) / 1e6 / steps);
  item.params["cut_rows_per_step"] = std::round(double(total.cut) / steps);
  item.params["stall_us_per_layer"] =
      std::round(1e6 * rows.stall_s / steps / double(layers.size()));
  std::vector<double> stalls;
  for (const LayerCounts& layer : layers) {
    stalls.push_back(std::round(1e6 * layer.rows.stall_s / steps));
  }
  if (o_.json) item.params["stall_us_by_layer"] = stalls;
  for (const Device::MemoryUse& use : runner.device().Memory()) {
    if (o_.json) item.params["device_memory"][use.kind] = use.bytes;
  }
  CountWork(row_bytes, &item);
  item.seconds_median = Median(seconds);
  const double stream = Median(streams_);
  item.params["stream_gb_per_s"] = std::round(stream / 1e8) / 10;
  item.ceiling_share = item.bytes / stream / item.seconds_median;
  return item;
}

void DecodeBench::CountWork(size_t row_bytes, BenchCase* item) const {
  const ModelConfig& config = source_.files().config;
  const ChannelConfig& channels = *source_.files().channels;
  const double scored = o_.dense ? 0 : o_.context, attended = o_.dense ? o_.context : o_.budget;
  const auto label_bytes =
      static_cast<double>(LabelBytes(channels.label_format, channels.channels));
  item->bytes =
      double(source_.weight_bytes()) + o_.batch * double(config.layers) * config.kv_heads *
                                           (scored * label_bytes + attended * double(row_bytes));
  item->flops =
      o_.batch * (2.0 * double(source_.weight_values()) +
                  double(config.layers) * config.heads *
                      (2.0 * scored * channels.channels + 4.0 * config.head_dim * attended));
}

}  // namespace

absl::Status BenchDecode(const DecodeBenchOptions& options) {
  auto source = DecodeSource::Make(options);
  if (!source.ok()) return source.status();
  return DecodeBench(options, source->get()).Run();
}

}  // namespace sparsekv
