#pragma once

#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace sparsekv {

// One thing that was measured.
struct BenchCase {
  std::string name;
  nlohmann::ordered_json params = nlohmann::ordered_json::object();
  double bytes = 0;  // that one run must move, and
  double flops = 0;  // the arithmetic that it must do
  double seconds_median = 0;
  std::optional<double> ceiling_share;  // ceiling's time / its own; none: nothing to compare with
};

// What every `sparsekv bench` prints.
class BenchReport {
 public:
  // Of this machine, built from this revision; `device`: what was measured is not its processor.
  explicit BenchReport(const std::string& device = "");

  void Add(BenchCase item) { cases_.push_back(std::move(item)); }

  // With `json` one object on one line: {machine, git, cases: [{name, params, bytes, flops,
  // seconds_median, ceiling_share}]}; else a table.
  std::string Text(bool json) const;
  void Print(bool json) const { std::fputs(Text(json).c_str(), stdout); }

 private:
  std::string Table() const;

  std::string machine_;
  std::string git_;
  std::vector<BenchCase> cases_;
};

// REQUIRES: values is not empty.
double Median(std::vector<double> values);

}  // namespace sparsekv
