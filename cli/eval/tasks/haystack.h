#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/eval/tasks/task.h"

namespace sparsekv {

// What needles lie in: lines of a text, or sentences that say nothing. Constant after Make.
class Haystack {
 public:
  // settings.text_file where there is one, else sentences.
  static absl::StatusOr<Haystack> Make(const TaskSettings& settings);

  // `size` lines, beginning somewhere (a case's `start`), with each needle, a line too, before the
  // line of its depth (0 = first .. 1 = after the last).
  struct Needle {
    std::string line;
    double depth = 0;
  };
  std::string With(std::vector<Needle> needles, uint32_t size, uint64_t start) const;

 private:
  std::vector<std::string> lines_;
};

}  // namespace sparsekv
