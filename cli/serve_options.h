#pragma once

#include <cstdint>
#include <string>

#include "gpu_worker/memory_plan.h"

namespace sparsekv {

// `sparsekv serve`, as parsed. design: one struct, few knobs; each is described by its --help line.
struct ServeOptions {
  std::string model_dir;
  std::string backend = "auto";
  uint32_t workers = 1;
  uint32_t tensor_parallel = 1;
  std::string grpc = "127.0.0.1:50051";
  std::string http = "127.0.0.1:8080";
  std::string state_dir;
  uint64_t host_memory_bytes = 0;    // 0 = half of what is available
  uint64_t device_memory_bytes = 0;  // 0 = 1 GiB on cpu, 90 % of what is free on cuda
  std::string placement = "auto";
  std::string fetch = "direct";
  std::string predict = "off";
  std::string correction = "on";
  std::string hot_rows = "off";
  std::string link = "off";
  std::string channels_file;
  uint32_t max_batch = 0;
  bool no_graphs = false;
  bool no_early_launch = false;
  bool exact_prompts = false;
  bool mirror_rows = false;
  unsigned threads = 0;  // of each worker's cpu backend, 0 = every core

  // On the cpu, bringing rows to a "device" costs a copy and gains nothing, unless one of the
  // options that say how is used.
  RowMode row_mode(bool cuda) const {
    const bool in_place = !cuda && link == "off" && hot_rows == "off" && predict == "off" &&
                          fetch == "direct" && placement != "resident";
    const auto hot = hot_rows == "off" ? 0u : static_cast<uint32_t>(std::stoul(hot_rows));
    return {.in_place = in_place, .hot_rows = hot, .predict = predict == "on"};
  }
};

}  // namespace sparsekv
