#include "cli/bench/report.h"

#include <gtest/gtest.h>

namespace sparsekv {
namespace {

TEST(BenchReport, JsonIsOneObjectOnOneLineWithTheStatedFields) {
  BenchReport report;
  report.Add({.name = "product",
              .params = {{"tokens", 4}, {"dtype", "bf16"}},
              .bytes = 1e9,
              .flops = 2e9,
              .seconds_median = 0.25,
              .ceiling_share = 0.5});
  report.Add({.name = "select", .seconds_median = 0.125});
  const std::string text = report.Text(/*json=*/true);
  EXPECT_EQ(text.find('\n'), text.size() - 1);
  const auto json = nlohmann::json::parse(text);
  EXPECT_EQ(json.size(), 3u);
  EXPECT_FALSE(json.at("machine").get<std::string>().empty());
  EXPECT_FALSE(json.at("git").get<std::string>().empty());
  ASSERT_EQ(json.at("cases").size(), 2u);
  EXPECT_EQ(json["cases"][0], nlohmann::json::parse(R"({
      "name": "product", "params": {"tokens": 4, "dtype": "bf16"}, "bytes": 1e9, "flops": 2e9,
      "seconds_median": 0.25, "ceiling_share": 0.5})"));
  EXPECT_EQ(json["cases"][1], nlohmann::json::parse(R"({
      "name": "select", "params": {}, "bytes": 0.0, "flops": 0.0, "seconds_median": 0.125,
      "ceiling_share": null})"));
}

TEST(BenchReport, TableSaysRatesAndShares) {
  BenchReport report;
  report.Add({.name = "product",
              .params = {{"tokens", 4}, {"dtype", "bf16"}},
              .bytes = 1e9,
              .seconds_median = 0.25,
              .ceiling_share = 0.5});
  const std::string text = report.Text(/*json=*/false);
  const std::string line = text.substr(text.find("product"));
  EXPECT_NE(line.find("tokens=4 dtype=bf16"), std::string::npos) << text;
  EXPECT_NE(line.find(" 250000.0 "), std::string::npos) << text;  // microseconds
  EXPECT_NE(line.find(" 4.0 "), std::string::npos) << text;       // GB/s
  EXPECT_NE(line.find(" - "), std::string::npos) << text;         // no FLOPs
  EXPECT_NE(line.find(" 50.0\n"), std::string::npos) << text;
}

TEST(BenchReport, MedianIsTheMiddle) {
  EXPECT_EQ(Median({5, 1, 3}), 3);
  EXPECT_EQ(Median({4, 1, 3, 2}), 2.5);
}

}  // namespace
}  // namespace sparsekv
