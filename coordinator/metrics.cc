#include "coordinator/metrics.h"

#include <prometheus/text_serializer.h>

#include <cmath>
#include <sstream>

#include "base/check.h"
#include "base/version.h"

namespace sparsekv {

namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

// vLLM's boundaries, so that its dashboards fit, with finer ones below: a step may take 100 us.
const Buckets kTimeToFirstToken = {.001, .0025, .005, .01, .02, .04, .06, .08, .1,  .25, .5,  .75,
                                   1,    2.5,   5,    7.5, 10,  20,  40,  80,  160, 640, 2560};
const Buckets kInterToken = {.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05,
                             .075,  .1,     .15,   .2,   .3,    .4,   .5,  .75,  1,
                             2.5,   5,      7.5,   10,   20,    40,   80};
const Buckets kRequest = {.001, .0025, .005, .01, .025, .05, .1,  .2,   .3,  .5,
                          .8,   1,     1.5,  2,   2.5,  5,   10,  15,   20,  30,
                          40,   50,    60,   120, 240,  480, 960, 1920, 7680};

prometheus::Family<prometheus::Gauge>& GaugeFamily(prometheus::Registry& registry,
                                                   const std::string& name,
                                                   const std::string& help) {
  return prometheus::BuildGauge().Name("sparsekv_" + name).Help(help).Register(registry);
}

prometheus::Family<prometheus::Counter>& CounterFamily(prometheus::Registry& registry,
                                                       const std::string& name,
                                                       const std::string& help) {
  return prometheus::BuildCounter().Name("sparsekv_" + name).Help(help).Register(registry);
}

prometheus::Gauge& Gauge(prometheus::Registry& registry, const std::string& name,
                         const std::string& help, const prometheus::Labels& labels = {}) {
  return GaugeFamily(registry, name, help).Add(labels);
}

prometheus::Counter& Counter(prometheus::Registry& registry, const std::string& name,
                             const std::string& help, const prometheus::Labels& labels = {}) {
  return CounterFamily(registry, name, help).Add(labels);
}

prometheus::Histogram& Histogram(prometheus::Registry& registry, const std::string& name,
                                 const std::string& help, const Buckets& buckets) {
  return prometheus::BuildHistogram()
      .Name("sparsekv_" + name)
      .Help(help)
      .Register(registry)
      .Add({}, buckets);
}

constexpr char kHostHelp[] = "Bytes of row blocks in the segment, all pools";
constexpr char kFetchHelp[] = "Bytes of token rows brought from host memory, by the way they took";
constexpr char kGatherHelp[] = "Requests to the store's gather that came to nothing";
constexpr char kRestartHelp[] = "Workers that came back, by what had gone";

// worker.proto, DeviceMemory.
constexpr std::array kKvKinds = {"labels", "rows", "maps", "prefill"};
constexpr std::array kMemoryKinds = {"labels",      "rows",   "maps",      "prefill",   "weights",
                                     "activations", "logits", "selection", "prediction"};

// What comes from another process may be any number; a counter that took NaN would stay there.
void Add(prometheus::Counter& counter, double value) {
  if (std::isfinite(value) && value > 0) counter.Increment(value);
}

}  // namespace

Metrics::Metrics(uint32_t workers)
    : ready(Gauge(registry_, "ready", "1 while /readyz says ready")),
      requests_running(Gauge(registry_, "requests_running", "Requests that hold blocks")),
      requests_waiting(Gauge(registry_, "requests_waiting", "Requests that wait for room")),
      time_to_first_token(Histogram(registry_, "time_to_first_token_seconds",
                                    "From arrival to the first token", kTimeToFirstToken)),
      inter_token_latency(Histogram(registry_, "inter_token_latency_seconds",
                                    "Between one token and the next", kInterToken)),
      e2e_request_latency(Histogram(registry_, "e2e_request_latency_seconds",
                                    "From arrival to the end, completed requests", kRequest)),
      request_queue_time(Histogram(registry_, "request_queue_time_seconds",
                                   "From arrival to the start on a worker", kRequest)),
      prompt_tokens(Counter(registry_, "prompt_tokens_total", "Prompt tokens of started requests")),
      prefill_tokens(Counter(registry_, "prefill_tokens_total", "Prompt tokens computed")),
      generation_tokens(Counter(registry_, "generation_tokens_total", "Tokens generated")),
      steps(Counter(registry_, "steps_total", "Steps made by the workers")),
      device_busy_seconds(Counter(registry_, "device_busy_seconds_total",
                                  "Time that the workers spent in steps, waiting included")),
      rows_selected(Counter(registry_, "rows_selected_total",
                            "Token rows attended, per layer and KV head; selected = hit + "
                            "prefetch_useful + missed")),
      rows_hit(Counter(registry_, "rows_hit_total",
                       "Selected rows that were on the device before the step predicted anything")),
      rows_prefetched(Counter(registry_, "rows_prefetched_total",
                              "Rows brought before their layer asked for them")),
      rows_prefetch_useful(Counter(registry_, "rows_prefetch_useful_total",
                                   "Prefetched rows that were then selected")),
      rows_prefetch_cut(Counter(registry_, "rows_prefetch_cut_total",
                                "Rows whose prefetch was given up as their layer asked for rows")),
      rows_missed(Counter(registry_, "rows_missed_total",
                          "Selected rows neither hot nor prefetched when asked for")),
      fetch_bytes_direct(Counter(registry_, "fetch_bytes_total", kFetchHelp, {{"path", "direct"}})),
      fetch_bytes_gather(Counter(registry_, "fetch_bytes_total", kFetchHelp, {{"path", "gather"}})),
      gather_requests_expired(
          Counter(registry_, "gather_requests_total", kGatherHelp, {{"result", "expired"}})),
      gather_requests_refused(
          Counter(registry_, "gather_requests_total", kGatherHelp, {{"result", "refused"}})),
      exposed_stall_seconds(Counter(registry_, "exposed_stall_seconds_total",
                                    "Time in which a device waited for rows or read missing ones")),
      link_busy_seconds(Counter(registry_, "link_busy_seconds_total",
                                "Time in which a link between host and device carried rows")),
      recall_samples(Counter(registry_, "attention_recall_samples_total",
                             "Times a layer was compared with dense attention")),
      recall_fallbacks(Counter(registry_, "recall_fallbacks_total",
                               "Layers that missed a recall target and attend everything")),
      host_kv_bytes_used(Gauge(registry_, "host_kv_bytes", kHostHelp, {{"state", "used"}})),
      host_kv_bytes_free(Gauge(registry_, "host_kv_bytes", kHostHelp, {{"state", "free"}})),
      store_up(Gauge(registry_, "store_up", "1 while the kv_store answers")),
      worker_restarts_died(
          Counter(registry_, "worker_restarts_total", kRestartHelp, {{"reason", "died"}})),
      worker_restarts_stream(
          Counter(registry_, "worker_restarts_total", kRestartHelp, {{"reason", "stream"}})),
      layer_similarity_(GaugeFamily(registry_, "layer_similarity_ratio",
                                    "Cosine between a layer's input and that of the layer before, "
                                    "last measured")),
      prediction_overlap_(GaugeFamily(registry_, "prediction_overlap_ratio",
                                      "Of the selected rows that were not hot, the share that a "
                                      "prediction had brought, last measured")),
      attention_recall_(GaugeFamily(registry_, "attention_recall_ratio",
                                    "Share of dense attention selected, last sampled")),
      prefetch_percent_(GaugeFamily(registry_, "prefetch_percent",
                                    "How many rows a layer's prediction takes, in percent of the "
                                    "budget; 0 = not predicted")),
      prefetch_enabled_(
          GaugeFamily(registry_, "prefetch_enabled", "1 while the layer is predicted")),
      layers_(workers) {
  AddKinds();
  AddWorkers(workers);
  AddReasons();
  Gauge(registry_, "build_info", "1; the labels tell the build", {{"version", kVersion}}).Set(1);
}

void Metrics::AddKinds() {
  auto& kv = GaugeFamily(registry_, "device_kv_bytes",
                         "Bytes in use of what devices have for KV data, all workers");
  for (const char* kind : kKvKinds) device_kv_bytes[kind] = &kv.Add({{"kind", kind}});
  auto& memory = GaugeFamily(registry_, "device_memory_bytes",
                             "Bytes taken on the devices when the workers started, all workers");
  for (const char* kind : kMemoryKinds) device_memory_bytes[kind] = &memory.Add({{"kind", kind}});
}

void Metrics::AddWorkers(uint32_t workers) {
  auto& up = GaugeFamily(registry_, "worker_up", "1 while the worker's stream is open");
  auto& step = GaugeFamily(registry_, "scheduler_last_step_timestamp_seconds",
                           "Unix time of the last report of steps; 0 before the first");
  for (uint32_t i = 0; i < workers; ++i) {
    worker_up.push_back(&up.Add({{"worker", std::to_string(i)}}));
    last_step.push_back(&step.Add({{"worker", std::to_string(i)}}));
  }
}

void Metrics::AddReasons() {
  auto& finished = CounterFamily(registry_, "request_success_total", "Requests ended, by reason");
  finished_.fill(nullptr);
  finished_[v1::FINISH_REASON_STOP] = &finished.Add({{"reason", "stop"}});
  finished_[v1::FINISH_REASON_LENGTH] = &finished.Add({{"reason", "length"}});
  finished_[v1::FINISH_REASON_CANCELLED] = &finished.Add({{"reason", "cancelled"}});
  finished_[v1::FINISH_REASON_DEADLINE] = &finished.Add({{"reason", "deadline"}});
  finished_[v1::FINISH_REASON_ERROR] = &finished.Add({{"reason", "error"}});
}

std::string Metrics::Serialize() const {
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, registry_.Collect());
  return out.str();
}

prometheus::Counter& Metrics::Finished(v1::FinishReason reason) {
  CHECK(finished_.at(reason) != nullptr);
  return *finished_[reason];
}

void Metrics::AddLayers(uint32_t worker, uint32_t layers) {
  std::vector<Layer>& known = layers_.at(worker);
  while (known.size() < layers) {
    const prometheus::Labels labels = {{"layer", std::to_string(known.size())},
                                       {"worker", std::to_string(worker)}};
    known.push_back({.similarity = &layer_similarity_.Add(labels),
                     .overlap = &prediction_overlap_.Add(labels),
                     .recall = &attention_recall_.Add(labels),
                     .prefetch_percent = &prefetch_percent_.Add(labels),
                     .prefetch_enabled = &prefetch_enabled_.Add(labels)});
  }
}

void Metrics::CountEpoch(uint32_t worker, const v1::EpochStats& stats) {
  Add(steps, stats.steps());
  Add(prefill_tokens, stats.prefill_tokens());
  Add(device_busy_seconds, stats.busy_s());
  Add(link_busy_seconds, stats.link_s());
  Add(fetch_bytes_direct, static_cast<double>(stats.direct_bytes()));
  Add(fetch_bytes_gather, static_cast<double>(stats.gather_bytes()));
  Add(gather_requests_expired, static_cast<double>(stats.gather_expired()));
  Add(gather_requests_refused, static_cast<double>(stats.gather_refused()));
  const std::vector<Layer>& known = layers_.at(worker);
  for (size_t i = 0; i < static_cast<size_t>(stats.layers_size()); ++i) {
    const v1::LayerStats& layer = stats.layers(static_cast<int>(i));
    Add(rows_selected, static_cast<double>(layer.selected()));
    Add(rows_hit, static_cast<double>(layer.hits()));
    Add(rows_prefetched, static_cast<double>(layer.prefetched()));
    Add(rows_prefetch_useful, static_cast<double>(layer.useful()));
    Add(rows_prefetch_cut, static_cast<double>(layer.cut()));
    Add(rows_missed, static_cast<double>(layer.missed()));
    Add(exposed_stall_seconds, layer.stall_s());
    Add(recall_samples, layer.recall_samples());
    Add(recall_fallbacks, layer.fell_back());
    if (i >= known.size()) continue;
    if (layer.similarity_count() > 0) {
      known[i].similarity->Set(layer.similarity_sum() / layer.similarity_count());
    }
    if (layer.recall_samples() > 0) {
      known[i].recall->Set(layer.recall_sum() / layer.recall_samples());
    }
  }
}

}  // namespace sparsekv
