#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "cli/recall/recall_checkpoint.h"

namespace sparsekv {

// What `sparsekv recall` is told.
struct RecallOptions {
  std::string out;           // a directory, made where it is missing
  uint32_t context = 16384;  // tokens of the prompt
  uint32_t hops = 64;        // answers to check
  RecallModel model;
};

// What it made.
struct RecallSummary {
  uint64_t fingerprint = 0;  // of the checkpoint
  uint32_t pairs = 0;        // in the prompt
  std::string json;          // both and the options, one object on one line
};

// Writes OUT/config.json, model.safetensors and tokenizer.json (the checkpoint), channels.json (its
// heavy channels), and a prompt: chase.json {"context", "hops", "prompt_token_ids",
// "expected_token_ids"} and chase.txt, the prompt as text. The same options give the same bytes.
// The weights depend on neither context nor hops. Options out of bounds are an InvalidArgument
// error that names the option.
absl::StatusOr<RecallSummary> MakeRecall(const RecallOptions& options);

}  // namespace sparsekv
