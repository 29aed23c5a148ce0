#include <cmath>
#include <limits>
#include <vector>

#include "base/check.h"
#include "kernels/half.h"
#include "kernels/plain.h"
#include "kernels/reference/operations.h"

namespace sparsekv::reference {
namespace {

// One query head over the listed rows of its KV head.
void AttendHead(const AttendArgs& args, DType dtype, const std::vector<const std::byte*>& rows,
                const float* q, float* out) {
  std::vector<double> weights;
  double highest = -std::numeric_limits<double>::infinity();
  for (const std::byte* row : rows) {
    double dot = 0;
    for (size_t c = 0; c < args.head_dim; ++c) dot += double{q[c]} * LoadValue(row, c, dtype);
    weights.push_back(dot * args.scale);
    if (weights.back() > highest) highest = weights.back();
  }
  double total = 0;
  for (double& weight : weights) total += weight = std::exp(weight - highest);
  for (size_t c = 0; c < args.head_dim; ++c) {
    double sum = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      sum += weights[i] * LoadValue(rows[i], args.head_dim + c, dtype);
    }
    out[c] = static_cast<float>(sum / total);
  }
}

}  // namespace

void Attend(const AttendArgs& args) {
  const uint32_t heads = args.kv_heads * args.group;
  for (const AttendArgs::Item& item : args.items) {
    CHECK(item.selection == nullptr || item.span.tokens == 1);
    for (uint32_t t = 0; t < item.span.tokens; ++t) {
      for (uint32_t h = 0; h < heads; ++h) {
        const uint32_t kv_head = h / args.group;
        std::vector<const std::byte*> rows;
        if (item.selection != nullptr) {
          const uint32_t* first = item.selection + kv_head * args.selection_stride;
          for (uint32_t i = 0; i < item.count; ++i) {
            rows.push_back(item.SelectedRow(kv_head, first[i]));
          }
        } else {
          const uint32_t position = item.span.position + t;
          for (uint32_t i = FirstInWindow(position, args.window); i <= position; ++i) {
            rows.push_back(item.rows.Row(kv_head, i));
          }
        }
        const size_t at = (size_t{item.span.first + t} * heads + h) * args.head_dim;
        AttendHead(args, item.rows.layout->dtype, rows, args.q + at, args.out + at);
      }
    }
  }
  plain::LandRows(args);
}

}  // namespace sparsekv::reference
