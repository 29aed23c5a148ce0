#pragma once

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "gpu_worker/checkpoint/weights.h"
#include "gpu_worker/device_arena.h"
#include "kernels/backend.h"

namespace sparsekv {

// What a copy of the weights takes of an arena.
size_t DeviceWeightBytes(const Weights& files);

// The weights copied to a device that cannot read the mapped files. The arena owns the copies.
absl::StatusOr<std::unique_ptr<Weights>> CopyToDevice(const Weights& files, Backend* backend,
                                                      DeviceArena* arena);

}  // namespace sparsekv
