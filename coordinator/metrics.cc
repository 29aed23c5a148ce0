#include "coordinator/metrics.h"

#include <prometheus/text_serializer.h>

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
constexpr char kRestartHelp[] = "Workers that came back, by what had gone";

}  // namespace

Metrics::Metrics(uint32_t workers)
    : requests_running(Gauge(registry_, "requests_running", "Requests that hold blocks")),
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
      generation_tokens(Counter(registry_, "generation_tokens_total", "Tokens generated")),
      rows_selected(Counter(registry_, "rows_selected_total", "Token rows attended")),
      rows_hit(Counter(registry_, "rows_hit_total", "Selected rows found on the device")),
      rows_prefetched(
          Counter(registry_, "rows_prefetched_total", "Rows fetched before their layer")),
      rows_missed(Counter(registry_, "rows_missed_total",
                          "Selected rows neither hot nor prefetched when their layer began")),
      fetch_bytes_direct(Counter(registry_, "fetch_bytes_total",
                                 "Bytes of token rows read from host memory",
                                 {{"path", "direct"}})),
      exposed_stall_seconds(Counter(registry_, "exposed_stall_seconds_total",
                                    "Time in which the device waited for rows")),
      host_kv_bytes_used(Gauge(registry_, "host_kv_bytes", kHostHelp, {{"state", "used"}})),
      host_kv_bytes_free(Gauge(registry_, "host_kv_bytes", kHostHelp, {{"state", "free"}})),
      device_kv_bytes_labels(Gauge(registry_, "device_kv_bytes",
                                   "Bytes of KV data on the devices, all workers",
                                   {{"kind", "labels"}})),
      store_up(Gauge(registry_, "store_up", "1 while the kv_store answers")),
      worker_restarts_died(
          Counter(registry_, "worker_restarts_total", kRestartHelp, {{"reason", "died"}})),
      worker_restarts_stream(
          Counter(registry_, "worker_restarts_total", kRestartHelp, {{"reason", "stream"}})) {
  auto& up = GaugeFamily(registry_, "worker_up", "1 while the worker's stream is open");
  for (uint32_t i = 0; i < workers; ++i) {
    worker_up.push_back(&up.Add({{"worker", std::to_string(i)}}));
  }
  auto& finished = CounterFamily(registry_, "request_success_total", "Requests ended, by reason");
  finished_.fill(nullptr);
  finished_[v1::FINISH_REASON_STOP] = &finished.Add({{"reason", "stop"}});
  finished_[v1::FINISH_REASON_LENGTH] = &finished.Add({{"reason", "length"}});
  finished_[v1::FINISH_REASON_CANCELLED] = &finished.Add({{"reason", "cancelled"}});
  finished_[v1::FINISH_REASON_DEADLINE] = &finished.Add({{"reason", "deadline"}});
  finished_[v1::FINISH_REASON_ERROR] = &finished.Add({{"reason", "error"}});
  Gauge(registry_, "build_info", "1; the labels tell the build", {{"version", kVersion}}).Set(1);
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

}  // namespace sparsekv
