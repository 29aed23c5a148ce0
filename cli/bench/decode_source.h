#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "cli/bench/bench_decode.h"
#include "gpu_worker/local_runner.h"

namespace sparsekv {

// What `bench decode` decodes: a model, sequences of nearly the full context, and the next step's
// tokens.
class DecodeSource {
 public:
  virtual ~DecodeSource() = default;

  // Random weights of a shape, or a real checkpoint that goes on from a text.
  static absl::StatusOr<std::unique_ptr<DecodeSource>> Make(const DecodeBenchOptions& options);

  virtual const ModelFiles& files() const = 0;
  virtual size_t weight_bytes() const = 0;   // that a step reads
  virtual size_t weight_values() const = 0;  // and multiplies with
  // Fills a runner whose rows are attended where they lie; others copy from it.
  virtual absl::Status Prepare(LocalRunner& runner) = 0;
  // One step of every sequence. Steps of one runner come in order, from 0.
  virtual void Step(LocalRunner& runner, uint32_t step, RowBudget budget) = 0;
};

}  // namespace sparsekv
