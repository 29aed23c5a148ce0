#include "cli/bench/report.h"

#include <algorithm>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "cli/bench/revision.h"

namespace sparsekv {
namespace {

std::string ProcessorName() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

std::string ParamsText(const nlohmann::ordered_json& params) {
  std::string text;
  for (const auto& [key, value] : params.items()) {
    absl::StrAppend(&text, text.empty() ? "" : " ", key, "=",
                    value.is_string() ? value.get<std::string>() : value.dump());
  }
  return text;
}

// "-" for what the case does not do.
std::string PerSecond(double amount, double seconds) {
  return amount == 0 ? "-" : absl::StrFormat("%.1f", amount / seconds / 1e9);
}

}  // namespace

double Median(std::vector<double> values) {
  CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

BenchReport::BenchReport(const std::string& device)
    : machine_(absl::StrCat(device, device.empty() ? "" : "; ", ProcessorName(), ", ",
                            std::thread::hardware_concurrency(), " cores")),
      git_(kGitRevision) {}

std::string BenchReport::Text(bool json) const {
  if (!json) return Table();
  nlohmann::ordered_json cases = nlohmann::ordered_json::array();
  for (const BenchCase& item : cases_) {
    nlohmann::ordered_json share;  // null where there is none
    if (item.ceiling_share) share = *item.ceiling_share;
    cases.push_back({{"name", item.name},
                     {"params", item.params},
                     {"bytes", item.bytes},
                     {"flops", item.flops},
                     {"seconds_median", item.seconds_median},
                     {"ceiling_share", share}});
  }
  const nlohmann::ordered_json report = {{"machine", machine_}, {"git", git_}, {"cases", cases}};
  return report.dump() + "\n";
}

std::string BenchReport::Table() const {
  size_t name_width = 4;
  size_t params_width = 6;
  for (const BenchCase& item : cases_) {
    name_width = std::max(name_width, item.name.size());
    params_width = std::max(params_width, ParamsText(item.params).size());
  }
  std::string text = absl::StrCat(machine_, ", ", git_, "\n");
  absl::StrAppendFormat(&text, "%-*s  %-*s %12s %8s %9s %9s\n", name_width, "case", params_width,
                        "params", "median us", "GB/s", "GFLOP/s", "ceiling %");
  for (const BenchCase& item : cases_) {
    absl::StrAppendFormat(
        &text, "%-*s  %-*s %12.1f %8s %9s %9s\n", name_width, item.name, params_width,
        ParamsText(item.params), item.seconds_median * 1e6,
        PerSecond(item.bytes, item.seconds_median), PerSecond(item.flops, item.seconds_median),
        item.ceiling_share ? absl::StrFormat("%.1f", *item.ceiling_share * 100) : "-");
  }
  return text;
}

}  // namespace sparsekv
