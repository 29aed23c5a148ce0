#pragma once

#include <string>

#include "gpu_worker/checkpoint/model_config.h"

namespace sparsekv {

// What of a model backend cuda cannot compute in this version, as one line that names the field of
// config.json; "" = nothing.
std::string WhyNotOnCuda(const ModelConfig& config);

}  // namespace sparsekv
