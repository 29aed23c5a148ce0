#include <vector>

#include "base/check.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/operations.h"

namespace sparsekv::cuda {

// Which way an item goes depends on the item and on the step's kind alone.
void Attend(const AttendArgs& args, const SelectedRows& selected, Tape& tape) {
  std::vector<AttendArgs::Item> few, prompt;
  for (const AttendArgs::Item& item : args.items) {
    if (item.span.tokens == 0) continue;
    const bool streams = item.selection != nullptr || tape.kind() == StepKind::kDecode;
    (streams ? few : prompt).push_back(item);
  }
  if (!few.empty()) AttendFew(args, few, selected, tape);
  if (!prompt.empty()) AttendPrompt(args, prompt, tape);
}

}  // namespace sparsekv::cuda
