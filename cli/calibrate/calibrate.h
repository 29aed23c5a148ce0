#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/calibration_criterion.h"
#include "gpu_worker/calibration_recall.h"
#include "gpu_worker/channel_config.h"

namespace sparsekv {

// What `sparsekv calibrate` is told.
struct CalibrateOptions {
  std::string model_dir, text_file;
  ChannelCriterion criterion;
  Pooling pooling = Pooling::kMaxNormalised;
  uint32_t channels = 0;  // labels of a KV head, 0 = ChannelConfig::DefaultChannels
  LabelFormat label_format = LabelFormat::kInt2;
  uint32_t context = 0;         // tokens of one, 0 = the model's
  uint32_t max_tokens = 65536;  // of the text
  double held_out = 0.25;       // share of the text that recall is measured on; 0: no measuring
  uint32_t queries = 64;        // sampled of each context
  bool compare = false;         // every criterion and label format, not the chosen one alone
  unsigned threads = 0;         // 0 = every core
};

// What it found.
struct Calibration {
  ChannelConfig channels;
  uint64_t fingerprint = 0;
  std::string model;  // its directory
  uint32_t held_out_tokens = 0, held_out_context = 0;
  std::vector<ChannelCriterion> criteria;  // of the meter's orders
  std::optional<RecallMeter> meter;        // empty where nothing was held out
};

// Calibrates on the beginning of the text and measures on its end. Errors are one line.
absl::StatusOr<Calibration> Calibrate(const CalibrateOptions& options);

}  // namespace sparsekv
