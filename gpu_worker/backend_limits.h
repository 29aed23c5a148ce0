#pragma once

#include <string>

#include "gpu_worker/checkpoint/model_config.h"
#include "kernels/backend.h"

namespace sparsekv {

// What of a model backend cuda cannot compute in this version, as one line that names the field of
// config.json; "" = nothing.
std::string WhyNotOnCuda(const ModelConfig& config);

// Why a backend cannot hold a recall target, as one line; "" = it can.
std::string WhyNoRecallTarget(const Backend& backend);

}  // namespace sparsekv
