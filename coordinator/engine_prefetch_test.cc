// Prefetch control through the engine: reports in, plans and metrics out.
#include <cmath>

#include "base/limits.h"
#include "coordinator/engine.h"
#include "coordinator/engine_fixture.h"

namespace sparsekv {
namespace {

class PrefetchFixture : public EngineFixture {
 public:
  explicit PrefetchFixture(PrefetchOptions prefetch = {}, uint32_t row_blocks = 1000)
      : EngineFixture(1, 64, std::chrono::seconds(30), PlacementPolicy::kOffload, prefetch) {
    workers[0]->hello.set_device_row_blocks(row_blocks);
    workers[0]->hello.set_hot_rows(128);
    Begin();
    client = Submit(Request("p", 2000));
    Step();
  }

  // Half a plan in which layer 1 was predicted well and layer 2 not at all.
  static v1::Report HalfAPlan() {
    v1::Report report;
    v1::EpochStats* stats = report.mutable_stats();
    stats->set_steps(kPlanSteps / 2);
    stats->set_busy_s(1);
    for (int i = 0; i < 3; ++i) {
      v1::LayerStats* layer = stats->add_layers();
      layer->set_selected(1000);
      layer->set_predicted(i == 0 ? 0 : 1000);
      layer->set_useful(i == 1 ? 950 : 0);
      layer->set_missed(i == 1 ? 50 : 1000);
      layer->set_predicted_selected(layer->useful());
      layer->set_similarity_sum(i == 1 ? 0.9 : 0.2);
      layer->set_similarity_count(i == 0 ? 0 : 1);
    }
    return report;
  }
  void Report(const v1::Report& report) {
    workers[0]->Report(report);
    Settle();
    workers[0]->Step();  // takes the plan that followed
    Settle();
  }
  const v1::Plan& LastPlan() const { return workers[0]->plans_sent.back(); }
  double Enabled(size_t layer) { return metrics.layers(0)[layer].prefetch_enabled->Value(); }

  Client client;
};

TEST(EnginePrefetch, PlansSayWhatToPredict) {
  PrefetchFixture f;
  ASSERT_EQ(f.LastPlan().layers_size(), 3);
  EXPECT_FALSE(f.LastPlan().layers(0).predict());
  EXPECT_TRUE(f.LastPlan().layers(1).predict());
  EXPECT_EQ(f.Enabled(0), 0);
  EXPECT_EQ(f.Enabled(2), 1);
  EXPECT_EQ(f.metrics.layers(0)[2].prefetch_percent->Value(), 100);
}

TEST(EnginePrefetch, NothingIsPlannedWhereNothingCanBePrefetched) {
  EXPECT_EQ(PrefetchFixture({.predict = false}).LastPlan().layers_size(), 0);
  EXPECT_EQ(PrefetchFixture({}, /*row_blocks=*/0).LastPlan().layers_size(), 0);
  EXPECT_EQ(PrefetchFixture({.predict = false}).Enabled(1), 0);
}

TEST(EnginePrefetch, ReportsChangePlansAndMetrics) {
  PrefetchFixture f;
  f.Report(f.HalfAPlan());
  EXPECT_TRUE(f.LastPlan().layers(2).predict());
  f.Report(f.HalfAPlan());
  EXPECT_TRUE(f.LastPlan().layers(1).predict());
  EXPECT_FALSE(f.LastPlan().layers(2).predict());
  EXPECT_EQ(f.Enabled(1), 1);
  EXPECT_EQ(f.Enabled(2), 0);
  EXPECT_EQ(f.metrics.layers(0)[2].prefetch_percent->Value(), 0);
  EXPECT_NEAR(f.metrics.layers(0)[1].overlap->Value(), 0.95, 1e-9);
  EXPECT_NEAR(f.metrics.layers(0)[2].similarity->Value(), 0.2, 1e-9);
}

TEST(EnginePrefetch, StepsOfAnOlderPlanDoNotSpeakOfNewSettings) {
  PrefetchFixture f;
  for (int i = 0; i < 2; ++i) f.Report(f.HalfAPlan());
  ASSERT_FALSE(f.LastPlan().layers(2).predict());
  // Layer 1 would be switched off by these, had they been made under the plan of now.
  v1::Report old = f.HalfAPlan();
  old.mutable_stats()->mutable_layers(1)->Swap(old.mutable_stats()->mutable_layers(2));
  f.workers[0]->plan_epoch_of_reports = 1;
  for (int i = 0; i < 4; ++i) f.Report(old);
  EXPECT_TRUE(f.LastPlan().layers(1).predict());
  f.workers[0]->plan_epoch_of_reports = 0;
  for (int i = 0; i < 2; ++i) f.Report(old);
  EXPECT_FALSE(f.LastPlan().layers(1).predict());
}

TEST(EnginePrefetch, AWorkerThatComesBackBeginsAnew) {
  PrefetchFixture f;
  for (int i = 0; i < 2; ++i) f.Report(f.HalfAPlan());
  ASSERT_EQ(f.Enabled(2), 0);
  f.workers[0]->Down();
  f.workers[0]->Up(++f.boots);
  f.Submit(EngineFixture::Request("p", 3));
  f.Step();
  EXPECT_EQ(f.Enabled(2), 1);
  EXPECT_TRUE(f.LastPlan().layers(2).predict());
}

TEST(EnginePrefetch, EpochsAreCountedOnce) {
  PrefetchFixture f;
  v1::Report report = f.HalfAPlan();
  v1::EpochStats* stats = report.mutable_stats();
  stats->set_prefill_tokens(512);
  stats->set_link_s(0.25);
  stats->set_direct_bytes(4096);
  stats->set_gather_bytes(8192);
  stats->set_gather_expired(3);
  stats->set_gather_refused(2);
  stats->mutable_layers(1)->set_hits(7);
  stats->mutable_layers(1)->set_prefetched(1200);
  stats->mutable_layers(1)->set_cut(11);
  stats->mutable_layers(1)->set_stall_s(0.5);
  stats->mutable_layers(0)->set_stall_s(-1);  // whatever comes, counters only rise
  stats->mutable_layers(2)->set_stall_s(std::nan(""));
  f.Report(report);
  f.Cancel(f.client);
  f.Step();  // its SequenceEnd has figures too
  f.engine->UpdateGauges();
  const std::string text = f.metrics.Serialize();
  for (const char* line :
       {"sparsekv_rows_selected_total 3000\n", "sparsekv_rows_hit_total 7\n",
        "sparsekv_rows_prefetched_total 1200\n", "sparsekv_rows_prefetch_useful_total 950\n",
        "sparsekv_rows_prefetch_cut_total 11\n", "sparsekv_rows_missed_total 2050\n",
        "sparsekv_fetch_bytes_total{path=\"direct\"} 4096\n",
        "sparsekv_fetch_bytes_total{path=\"gather\"} 8192\n",
        "sparsekv_gather_requests_total{result=\"expired\"} 3\n",
        "sparsekv_gather_requests_total{result=\"refused\"} 2\n",
        "sparsekv_exposed_stall_seconds_total 0.5\n", "sparsekv_link_busy_seconds_total 0.25\n",
        "sparsekv_device_busy_seconds_total 1\n", "sparsekv_steps_total 16\n",
        "sparsekv_prefill_tokens_total 512\n", "sparsekv_ready 1\n"}) {
    EXPECT_NE(text.find(std::string("\n") + line), std::string::npos) << line << "\n" << text;
  }
  EXPECT_NEAR(f.metrics.last_step[0]->Value(), static_cast<double>(time(nullptr)), 5);
}

v1::DeviceMemory Memory(const std::string& kind, uint64_t bytes, uint64_t used) {
  v1::DeviceMemory memory;
  memory.set_kind(kind);
  memory.set_bytes(bytes);
  memory.set_used_bytes(used);
  return memory;
}

TEST(EnginePrefetch, DeviceMemoryIsShownByKindAndIsGivenBack) {
  EngineFixture f(2);
  for (auto& worker : f.workers) {
    *worker->hello.add_device_memory() = Memory("rows", 1000, 0);
    *worker->hello.add_device_memory() = Memory("weights", 500, 500);
    *worker->hello.add_device_memory() = Memory("new kind", 1, 1);
  }
  f.Begin();
  const auto shown = [&](const std::map<std::string, prometheus::Gauge*>& gauges,
                         const std::string& kind) {
    f.engine->UpdateGauges();
    return gauges.at(kind)->Value();
  };
  EXPECT_EQ(shown(f.metrics.device_memory_bytes, "rows"), 2000);
  EXPECT_EQ(shown(f.metrics.device_memory_bytes, "weights"), 1000);
  EXPECT_EQ(shown(f.metrics.device_kv_bytes, "rows"), 0);
  const auto client = f.Submit(EngineFixture::Request("p", 100));
  f.Step();
  v1::Report report;
  report.mutable_stats()->set_steps(1);
  *report.mutable_stats()->add_device_memory() = Memory("rows", 1000, 640);
  f.workers[0]->Report(report);
  EXPECT_EQ(shown(f.metrics.device_kv_bytes, "rows"), 640);
  f.Cancel(client);
  f.Step();
  EXPECT_EQ(shown(f.metrics.device_kv_bytes, "rows"), 0);
  f.workers[1]->Down();
  EXPECT_EQ(shown(f.metrics.device_memory_bytes, "rows"), 1000);
}

}  // namespace
}  // namespace sparsekv
