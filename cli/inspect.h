#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "gpu_worker/device.h"

namespace sparsekv {

// What is known of a checkpoint directory, and whether `serve` would take it.
struct Inspection {
  nlohmann::ordered_json report;
  absl::Status refusal;  // the error that serve would give; the report has what could be read
};
Inspection Inspect(const std::string& model_dir);

// The part "memory" of the report: bytes per 1,000 tokens, and how many sequences of 8K, 32K and
// 128K tokens fit this machine and GPUs, by the plan that a worker makes at its start.
nlohmann::ordered_json DescribeMemory(const ModelFiles& files);

// The report for people.
std::string Shown(const nlohmann::ordered_json& report);

}  // namespace sparsekv
