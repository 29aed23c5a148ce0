#include "cli/backend_choice.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "cli/device_probe.h"
#include "gpu_worker/device_weights.h"

namespace sparsekv {

namespace {

constexpr uint64_t kDefaultCpuDeviceBytes = 1ull << 30;

absl::Status Plan(const ServeOptions& options, const ModelFiles& files, BackendChoice* choice) {
  auto memory =
      MemoryPlan::Make(files.config, files.channel_config(),
                       {.device_bytes = choice->device_bytes,
                        .max_batch = options.max_batch,
                        .prefill_unit_tokens = PrefillUnitTokens(choice->cuda),
                        .rows = options.row_mode(choice->cuda),
                        .host_memory = !choice->cuda,
                        .weight_bytes = choice->cuda ? DeviceWeightBytes(*files.weights) : 0});
  if (memory.ok()) choice->memory = *memory;
  return memory.status();
}

absl::Status ChooseCuda(const ServeOptions& options, const ModelFiles& files,
                        const DeviceProbe& probe, BackendChoice* choice) {
  if (absl::Status status = files.CheckCuda(); !status.ok()) return status;
  if (probe.devices.empty()) return absl::FailedPreconditionError(probe.why);
  if (options.workers > probe.devices.size()) {
    return absl::FailedPreconditionError(absl::StrCat("--workers: ", options.workers, " asked, ",
                                                      probe.devices.size(),
                                                      " CUDA devices are here"));
  }
  for (const auto& [option, set] : {std::pair{"--correction none", options.correction == "none"},
                                    {"--fetch gather", options.fetch == "gather"},
                                    {"--link, which is for the cpu", options.link != "off"}}) {
    if (set) return absl::UnimplementedError(absl::StrCat(option, ": not with CUDA devices"));
  }
  uint64_t least = UINT64_MAX;
  for (uint32_t i = 0; i < options.workers; ++i) {
    choice->devices.push_back(probe.devices[i].ordinal);
    choice->nodes.push_back(probe.devices[i].node);
    least = std::min(least, probe.devices[i].free_bytes);
  }
  if (options.device_memory_bytes > least) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "--device-memory: ", options.device_memory_bytes, " bytes asked, ", least, " are free"));
  }
  choice->cuda = true;
  choice->device_bytes = options.device_memory_bytes ? options.device_memory_bytes : least / 10 * 9;
  return Plan(options, files, choice);
}

}  // namespace

absl::StatusOr<BackendChoice> ChooseBackend(const ServeOptions& options, const ModelFiles& files,
                                            const std::string& worker_program) {
  if (options.backend != "cpu") {
    auto probe = ProbeDevices(worker_program);
    if (!probe.ok()) return probe.status();
    BackendChoice choice;
    const absl::Status status = ChooseCuda(options, files, *probe, &choice);
    if (status.ok()) return choice;
    const std::string why(status.message());
    if (options.backend == "cuda") {
      return absl::Status(status.code(), absl::StrCat("--backend cuda: ", why));
    }
    spdlog::info("workers run on cpu: {}", why);
  }
  BackendChoice choice;
  choice.device_bytes =
      options.device_memory_bytes ? options.device_memory_bytes : kDefaultCpuDeviceBytes;
  if (absl::Status status = Plan(options, files, &choice); !status.ok()) return status;
  return choice;
}

}  // namespace sparsekv
