#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sparsekv/v1/generation.pb.h"

namespace sparsekv {

// Every series of the coordinator; all are there from the start, at 0. The names are an interface.
// Thread-safe.
class Metrics {
 private:
  prometheus::Registry registry_;  // before the series that live in it

 public:
  explicit Metrics(uint32_t workers);

  // Prometheus' text format.
  std::string Serialize() const;
  prometheus::Counter& Finished(v1::FinishReason reason);

  prometheus::Gauge& requests_running;
  prometheus::Gauge& requests_waiting;
  prometheus::Histogram& time_to_first_token;
  prometheus::Histogram& inter_token_latency;
  prometheus::Histogram& e2e_request_latency;
  prometheus::Histogram& request_queue_time;
  prometheus::Counter& prompt_tokens;
  prometheus::Counter& generation_tokens;
  prometheus::Counter& rows_selected;
  prometheus::Counter& rows_hit;
  prometheus::Counter& rows_prefetched;
  prometheus::Counter& rows_missed;
  prometheus::Counter& fetch_bytes_direct;
  prometheus::Counter& exposed_stall_seconds;
  prometheus::Gauge& host_kv_bytes_used;
  prometheus::Gauge& host_kv_bytes_free;
  prometheus::Gauge& device_kv_bytes_labels;
  prometheus::Gauge& store_up;
  std::vector<prometheus::Gauge*> worker_up;    // by worker
  prometheus::Counter& worker_restarts_died;    // a new process came
  prometheus::Counter& worker_restarts_stream;  // the same process on a new stream

 private:
  std::array<prometheus::Counter*, v1::FinishReason_ARRAYSIZE> finished_;
};

}  // namespace sparsekv
