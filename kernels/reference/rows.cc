#include <vector>

#include "base/check.h"
#include "kernels/half.h"
#include "kernels/reference/operations.h"

namespace sparsekv::reference {

void AppendRows(const AppendRowsArgs& args) {
  for (const AppendRowsArgs::Item& item : args.items) {
    const RowLayout& layout = *item.rows.layout;
    for (uint32_t t = 0; t < item.span.tokens; ++t) {
      for (uint32_t h = 0; h < layout.kv_heads; ++h) {
        const size_t from = (size_t{item.span.first + t} * layout.kv_heads + h) * layout.head_dim;
        std::byte* row = item.Row(h, t);
        for (size_t c = 0; c < layout.head_dim; ++c) {
          StoreValue(row, c, layout.dtype, args.k[from + c]);
          StoreValue(row, layout.head_dim + c, layout.dtype, args.v[from + c]);
        }
      }
    }
  }
}

void AppendLabels(const AppendLabelsArgs& args) {
  for (const AppendLabelsArgs::Item& item : args.items) {
    const uint32_t channels = item.labels.layout->channels;
    CHECK_EQ(item.labels.layout->kv_heads, args.kv_heads);
    for (uint32_t t = 0; t < item.span.tokens; ++t) {
      const uint32_t token = item.span.position + t;
      for (uint32_t h = 0; h < args.kv_heads; ++h) {
        const float* k = args.k + (size_t{item.span.first + t} * args.kv_heads + h) * args.head_dim;
        std::vector<float> label;
        for (uint32_t c = 0; c < channels; ++c) {
          label.push_back(Rounded(k[args.channels[h * channels + c]], args.row_dtype));
        }
        StoreLabel(*item.labels.layout, item.labels.Head(h, token / kBlockTokens),
                   token % kBlockTokens, label);
      }
    }
  }
}

}  // namespace sparsekv::reference
