#include "cli/recall/recall.h"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/concat.h"
#include "base/ids.h"
#include "base/limits.h"
#include "cli/recall/recall_prompt.h"
#include "cli/recall/recall_tokenizer.h"
#include "gpu_worker/checkpoint/json_file.h"
#include "gpu_worker/checkpoint/weights.h"

namespace sparsekv {
namespace {

constexpr uint32_t kMinContext = 256;
constexpr uint32_t kMaxKvHeads = 16;
constexpr uint32_t kMaxExtraLayers = 64;
constexpr uint32_t kLeastMaxContext = 1 << 17;  // of config.json, so that other prompts fit too

absl::Status CheckOptions(const RecallOptions& options) {
  const auto refuse = [](const std::string& what) { return absl::InvalidArgumentError(what); };
  const auto bounds = [&](const char* name, uint32_t value, uint32_t min, uint32_t max) {
    if (value >= min && value <= max) return absl::OkStatus();
    return refuse(Concat(name, " ", value, " is not in ", min, "..", max));
  };
  const RecallModel& model = options.model;
  if (options.out.empty()) return refuse("--out is missing");
  if (model.head_dim != 64 && model.head_dim != 128) {
    return refuse(Concat("--head-dim ", model.head_dim, " is not 64 or 128"));
  }
  for (absl::Status s : {bounds("--context", options.context, kMinContext, kMaxContext / 2),
                         bounds("--hops", options.hops, 1, kRecallKeys - 1),
                         bounds("--kv-heads", model.kv_heads, 1, kMaxKvHeads),
                         bounds("--group", model.group, 1, kMaxGroup),
                         bounds("--loud-channels", model.loud_channels, 0, model.head_dim / 16),
                         bounds("--extra-layers", model.extra_layers, 0, kMaxExtraLayers)}) {
    if (!s.ok()) return s;
  }
  if (options.hops >= RecallPairs(options.context)) {
    return refuse(Concat("--hops ", options.hops, " needs --context ", 4 * (options.hops + 1),
                         " or more, so that no key is asked twice"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RecallSummary> MakeRecall(const RecallOptions& options) {
  if (absl::Status s = CheckOptions(options); !s.ok()) return s;
  std::error_code error;
  std::filesystem::create_directories(options.out, error);
  if (error) return absl::UnknownError(Concat(options.out, ": ", error.message()));

  const uint32_t max_context =
      std::max(kLeastMaxContext, std::bit_ceil(options.context + options.hops));
  absl::Status written = WriteRecallCheckpoint(options.out, options.model, max_context);
  if (!written.ok()) return written;
  // Loaded like anybody's checkpoint: the fingerprint is that of the files.
  absl::StatusOr<Checkpoint> checkpoint = LoadCheckpoint(options.out);
  if (!checkpoint.ok()) return checkpoint.status();
  RecallSummary summary;
  summary.fingerprint = checkpoint->weights->fingerprint();

  const RecallPrompt chase = MakeRecallPrompt(options.context, options.hops, options.model.seed);
  summary.pairs = chase.pairs;
  const nlohmann::ordered_json chase_json = {{"context", options.context},
                                             {"hops", options.hops},
                                             {"prompt_token_ids", chase.prompt},
                                             {"expected_token_ids", chase.expected}};
  const std::string dir = options.out + "/";
  const auto write = [&](const char* name, const std::string& bytes) {
    if (written.ok()) written = WriteFileAtomically(dir + name, bytes);
  };
  write("tokenizer.json", RecallTokenizerJson());
  write("chase.json", chase_json.dump() + "\n");
  write("chase.txt", RecallText(chase.prompt));
  if (written.ok()) {
    written = RecallChannels(options.model).Save(dir + "channels.json", summary.fingerprint);
  }
  if (!written.ok()) return written;

  const bool easy = options.model.difficulty == RecallDifficulty::kEasy;
  const nlohmann::ordered_json line = {{"out", options.out},
                                       {"context", options.context},
                                       {"hops", options.hops},
                                       {"pairs", summary.pairs},
                                       {"codes", easy ? "easy" : "hard"},
                                       {"layers", 2 + options.model.extra_layers},
                                       {"kv_heads", options.model.kv_heads},
                                       {"group", options.model.group},
                                       {"head_dim", options.model.head_dim},
                                       {"loud_channels", options.model.loud_channels},
                                       {"dtype", Name(options.model.dtype)},
                                       {"fingerprint", HexId(summary.fingerprint)}};
  summary.json = line.dump();
  return summary;
}

}  // namespace sparsekv
