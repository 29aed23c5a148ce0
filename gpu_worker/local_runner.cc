#include "gpu_worker/local_runner.h"

#include <numeric>

#include "base/check.h"

namespace sparsekv {

absl::StatusOr<std::unique_ptr<LocalRunner>> LocalRunner::Make(const ModelFiles& files,
                                                               const Options& options) {
  std::unique_ptr<LocalRunner> runner(new LocalRunner());
  const uint32_t blocks = (options.max_tokens + kBlockTokens - 1) / kBlockTokens;
  runner->layout_ = files.Layout(blocks);
  runner->rows_ = std::make_unique_for_overwrite<std::byte[]>(runner->layout_.pool_bytes());
  runner->blocks_.resize(blocks);
  std::iota(runner->blocks_.begin(), runner->blocks_.end(), 0u);
  auto device = Device::Make(files, {.device_bytes = SIZE_MAX / 2,
                                     .max_batch = 1,
                                     .prefill_unit_tokens = options.chunk_tokens,
                                     .threads = options.threads,
                                     .reference = options.reference,
                                     .row_layout = runner->layout_,
                                     .row_pool = runner->rows_.get()});
  if (!device.ok()) return device.status();
  runner->device_ = *std::move(device);
  if (files.channels) {
    CHECK(runner->device_.labels->Take(blocks, runner->label_pages_));
  }
  return runner;
}

void LocalRunner::Forward(std::span<const uint32_t> ids, RowBudget budget) {
  const StepItem item = {.ids = ids,
                         .position = position_,
                         .blocks = blocks_.data(),
                         .label_pages = label_pages_.empty() ? nullptr : label_pages_.data(),
                         .budget = budget};
  CHECK_LE((position_ + ids.size() + kBlockTokens - 1) / kBlockTokens, blocks_.size());
  device_.model->Forward({&item, 1});
  position_ += static_cast<uint32_t>(ids.size());
}

}  // namespace sparsekv
