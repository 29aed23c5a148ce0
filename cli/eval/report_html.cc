#include "cli/eval/report.h"

namespace sparsekv {
std::string EvalReport::ToHtml(const std::string& date) const { return date; }
}  // namespace sparsekv
