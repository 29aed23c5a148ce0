#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sparsekv/v1/generation.pb.h"
#include "sparsekv/v1/worker.pb.h"

namespace sparsekv {

// Every series of the coordinator. All are there from the start, at 0, but those of a worker's
// layers, which are there from its first hello on, so before any request runs. The names are an
// interface. Adding layers: strand only; the rest is thread-safe.
class Metrics {
 private:
  prometheus::Registry registry_;  // before the series that live in it

 public:
  // Of one layer of one worker.
  struct Layer {
    prometheus::Gauge* similarity = nullptr;
    prometheus::Gauge* overlap = nullptr;
    prometheus::Gauge* recall = nullptr;
    prometheus::Gauge* prefetch_percent = nullptr;
    prometheus::Gauge* prefetch_enabled = nullptr;
  };

  explicit Metrics(uint32_t workers);

  // Prometheus' text format.
  std::string Serialize() const;
  prometheus::Counter& Finished(v1::FinishReason reason);
  // Adds what is missing.
  void AddLayers(uint32_t worker, uint32_t layers);
  const std::vector<Layer>& layers(uint32_t worker) const { return layers_.at(worker); }
  // The sums of one report, and its layers' similarity and recall.
  void CountEpoch(uint32_t worker, const v1::EpochStats& stats);

  prometheus::Gauge& ready;
  prometheus::Gauge& requests_running;
  prometheus::Gauge& requests_waiting;
  prometheus::Histogram& time_to_first_token;
  prometheus::Histogram& inter_token_latency;
  prometheus::Histogram& e2e_request_latency;
  prometheus::Histogram& request_queue_time;
  prometheus::Counter& prompt_tokens;
  prometheus::Counter& prefill_tokens;
  prometheus::Counter& generation_tokens;
  prometheus::Counter& steps;
  prometheus::Counter& device_busy_seconds;
  prometheus::Counter& rows_selected;
  prometheus::Counter& rows_hit;
  prometheus::Counter& rows_prefetched;
  prometheus::Counter& rows_prefetch_useful;
  prometheus::Counter& rows_prefetch_cut;
  prometheus::Counter& rows_missed;
  prometheus::Counter& fetch_bytes_direct;
  prometheus::Counter& fetch_bytes_gather;
  prometheus::Counter& gather_requests_expired;
  prometheus::Counter& gather_requests_refused;
  prometheus::Counter& exposed_stall_seconds;
  prometheus::Counter& link_busy_seconds;
  prometheus::Counter& recall_samples;
  prometheus::Counter& recall_fallbacks;
  prometheus::Gauge& host_kv_bytes_used;
  prometheus::Gauge& host_kv_bytes_free;
  prometheus::Gauge& store_up;
  std::map<std::string, prometheus::Gauge*> device_kv_bytes;      // by kind, in use
  std::map<std::string, prometheus::Gauge*> device_memory_bytes;  // by kind, what is taken
  std::vector<prometheus::Gauge*> worker_up;                      // by worker
  std::vector<prometheus::Gauge*> last_step;                      // by worker
  prometheus::Counter& worker_restarts_died;                      // a new process came
  prometheus::Counter& worker_restarts_stream;  // the same process on a new stream

 private:
  // Series with labels, from the start.
  void AddKinds();
  void AddWorkers(uint32_t workers);
  void AddReasons();

  prometheus::Family<prometheus::Gauge>& layer_similarity_;
  prometheus::Family<prometheus::Gauge>& prediction_overlap_;
  prometheus::Family<prometheus::Gauge>& attention_recall_;
  prometheus::Family<prometheus::Gauge>& prefetch_percent_;
  prometheus::Family<prometheus::Gauge>& prefetch_enabled_;
  std::vector<std::vector<Layer>> layers_;  // by worker
  std::array<prometheus::Counter*, v1::FinishReason_ARRAYSIZE> finished_;
};

}  // namespace sparsekv
