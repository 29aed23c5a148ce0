#pragma once

#include <string>

#include "cli/calibrate/calibrate.h"

namespace sparsekv {

// Recall of attention mass against bytes per token and KV head, for every criterion, label format
// and budget that was compared. REQUIRES: calibration.meter.
std::string CalibrationTable(const Calibration& calibration);
std::string CalibrationJson(const Calibration& calibration);
std::string CalibrationSvg(const Calibration& calibration);  // a page of plots

}  // namespace sparsekv
