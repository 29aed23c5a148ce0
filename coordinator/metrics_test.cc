// The names of the metrics are an interface: Prometheus' own tool finds nothing wrong with them,
// and what deploy's dashboard and rules ask for is there.
#include "coordinator/metrics.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

namespace sparsekv {
namespace {

namespace fs = std::filesystem;

const fs::path kDeploy = fs::path(SPARSEKV_SOURCE_DIR) / "deploy";

// As scraped before any request: a worker has said hello.
std::string Scrape() {
  Metrics metrics(2);
  metrics.AddLayers(0, 2);
  metrics.AddLayers(1, 2);
  return metrics.Serialize();
}

std::string ReadFile(const fs::path& path) {
  std::ifstream in(path);
  EXPECT_TRUE(in) << path;
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

std::set<std::string> Names(const std::string& text) {
  const std::regex name("sparsekv_[a-z0-9_]+");
  return {std::sregex_token_iterator(text.begin(), text.end(), name), std::sregex_token_iterator()};
}

// The series of a scrape, comments left out.
std::set<std::string> Series(const std::string& scrape) {
  std::set<std::string> series;
  std::istringstream lines(scrape);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("#")) series.insert(line.substr(0, line.find_first_of("{ ")));
  }
  return series;
}

bool HasPromtool() { return system("promtool --version >/dev/null 2>&1") == 0; }

// What the command prints, and 0 when it succeeded.
std::pair<int, std::string> Shell(const std::string& command) {
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  std::string output;
  char buffer[4096];
  while (size_t got = fread(buffer, 1, sizeof buffer, pipe)) output.append(buffer, got);
  return {pclose(pipe), output};
}

#define SKIP_WITHOUT_PROMTOOL() \
  if (!HasPromtool()) GTEST_SKIP() << "promtool is not installed (Debian: prometheus)"

TEST(Metrics, EverySeriesIsThereFromTheStart) {
  const std::set<std::string> series = Series(Scrape());
  for (const char* name : {"requests_running",
                           "requests_waiting",
                           "time_to_first_token_seconds_bucket",
                           "inter_token_latency_seconds_count",
                           "e2e_request_latency_seconds_sum",
                           "request_queue_time_seconds_bucket",
                           "request_success_total",
                           "prompt_tokens_total",
                           "generation_tokens_total",
                           "rows_selected_total",
                           "rows_hit_total",
                           "rows_prefetched_total",
                           "rows_missed_total",
                           "fetch_bytes_total",
                           "exposed_stall_seconds_total",
                           "layer_similarity_ratio",
                           "prediction_overlap_ratio",
                           "attention_recall_ratio",
                           "attention_recall_samples_total",
                           "recall_fallbacks_total",
                           "device_kv_bytes",
                           "host_kv_bytes",
                           "worker_up",
                           "worker_restarts_total",
                           "build_info"}) {
    EXPECT_TRUE(series.contains(std::string("sparsekv_") + name)) << name;
  }
}

TEST(Metrics, LayersAreAddedOnce) {
  Metrics metrics(1);
  metrics.AddLayers(0, 2);
  metrics.layers(0)[1].overlap->Set(0.5);
  metrics.AddLayers(0, 2);
  ASSERT_EQ(metrics.layers(0).size(), 2u);
  EXPECT_NE(
      metrics.Serialize().find("sparsekv_prediction_overlap_ratio{layer=\"1\",worker=\"0\"} 0.5\n"),
      std::string::npos);
}

TEST(Metrics, PromtoolFindsNoFault) {
  SKIP_WITHOUT_PROMTOOL();
  const fs::path file = fs::temp_directory_path() / ("sparsekv-scrape-" + std::to_string(getpid()));
  std::ofstream(file) << Scrape();
  const auto [code, output] = Shell("promtool check metrics <" + file.string());
  fs::remove(file);
  EXPECT_EQ(code, 0) << output;
  EXPECT_EQ(output, "");
}

TEST(Deploy, DashboardAndRulesAskForWhatIsThere) {
  const std::set<std::string> series = Series(Scrape());
  for (const char* file : {"grafana/sparsekv.json", "prometheus/alerts.yml"}) {
    const std::set<std::string> names = Names(ReadFile(kDeploy / file));
    EXPECT_GT(names.size(), 5u) << file;
    for (const std::string& name : names) {
      EXPECT_TRUE(series.contains(name)) << file << " asks for " << name;
    }
  }
}

TEST(Deploy, PromtoolFindsNoFaultInConfigAndRules) {
  SKIP_WITHOUT_PROMTOOL();
  const std::string in = "cd " + (kDeploy / "prometheus").string() + " && promtool ";
  for (const char* check :
       {"check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"}) {
    const auto [code, output] = Shell(in + check);
    EXPECT_EQ(code, 0) << check << "\n" << output;
  }
}

// Each alert has a case in which it fires and one in which it is silent.
TEST(Deploy, EveryAlertIsTestedBothWays) {
  const std::string rules = ReadFile(kDeploy / "prometheus/alerts.yml");
  const std::string tests = ReadFile(kDeploy / "prometheus/alerts_test.yml");
  const std::regex alert("- alert: (\\w+)"), tested("alertname: (\\w+),?\\s+exp_alerts:( \\[\\])?");
  std::multiset<std::string> fires, silent;
  for (std::sregex_iterator it(tests.begin(), tests.end(), tested), end; it != end; ++it) {
    ((*it)[2].matched ? silent : fires).insert((*it)[1]);
  }
  int alerts = 0;
  for (std::sregex_iterator it(rules.begin(), rules.end(), alert), end; it != end; ++it, ++alerts) {
    EXPECT_TRUE(fires.contains((*it)[1])) << (*it)[1] << " never fires in the tests";
    EXPECT_TRUE(silent.contains((*it)[1])) << (*it)[1] << " is never silent in the tests";
  }
  EXPECT_GT(alerts, 5);
}

}  // namespace
}  // namespace sparsekv
