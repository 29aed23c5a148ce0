#include <algorithm>

#include "base/check.h"
#include "kernels/cpu/operations.h"
#include "kernels/half.h"

// Appending is scalar: a step stores one row per token and KV head, and the values must be those
// that every other backend stores.
namespace sparsekv::cpu {
namespace {

void StoreRow(std::byte* to, DType dtype, const float* from, size_t first, size_t count) {
  switch (dtype) {
    case DType::kF32:
      for (size_t c = 0; c < count; ++c) StoreValue(to, first + c, DType::kF32, from[c]);
      return;
    case DType::kF16:
      for (size_t c = 0; c < count; ++c) StoreValue(to, first + c, DType::kF16, from[c]);
      return;
    case DType::kBF16:
      for (size_t c = 0; c < count; ++c) StoreValue(to, first + c, DType::kBF16, from[c]);
      return;
  }
}

void AppendRow(const AppendRowsArgs& args, const AppendRowsArgs::Item& item, uint32_t t) {
  const RowLayout& layout = *item.rows.layout;
  const size_t dim = layout.head_dim;
  const size_t token = size_t{item.span.first} + t;
  for (uint32_t h = 0; h < layout.kv_heads; ++h) {
    const size_t from = (token * layout.kv_heads + h) * dim;
    std::byte* row = item.Row(h, t);
    StoreRow(row, layout.dtype, args.k + from, 0, dim);
    StoreRow(row, layout.dtype, args.v + from, dim, dim);
  }
}

void AppendLabel(const AppendLabelsArgs& args, const AppendLabelsArgs::Item& item, uint32_t t) {
  const uint32_t channels = item.labels.layout->channels;
  const uint32_t token = item.span.position + t;
  for (uint32_t h = 0; h < args.kv_heads; ++h) {
    const float* k = args.k + (size_t{item.span.first + t} * args.kv_heads + h) * args.head_dim;
    float label[kMaxHeadDim];
    for (uint32_t c = 0; c < channels; ++c) {
      label[c] = Rounded(k[args.channels[h * channels + c]], args.row_dtype);
    }
    StoreLabel(*item.labels.layout, item.labels.Head(h, token / kBlockTokens), token % kBlockTokens,
               {label, channels});
  }
}

// Calls append(args, item, token of the item) for every token, in tasks of neighbours.
template <typename Args, typename Append>
void ForEachToken(const Args& args, Context& context, const Append& append) {
  constexpr uint32_t kTaskTokens = 16;
  for (const auto& item : args.items) {
    const uint32_t tokens = item.span.tokens;
    context.pool.Run((tokens + kTaskTokens - 1) / kTaskTokens, [&](uint32_t task, unsigned) {
      const uint32_t first = task * kTaskTokens;
      const uint32_t end = std::min(tokens, first + kTaskTokens);
      for (uint32_t t = first; t < end; ++t) append(args, item, t);
    });
  }
}

}  // namespace

void AppendRows(const AppendRowsArgs& args, Context& context) {
  ForEachToken(args, context, AppendRow);
}

void AppendLabels(const AppendLabelsArgs& args, Context& context) {
  for (const AppendLabelsArgs::Item& item : args.items) {
    CHECK_EQ(item.labels.layout->kv_heads, args.kv_heads);
    CHECK_LE(item.labels.layout->channels, kMaxHeadDim);
  }
  ForEachToken(args, context, AppendLabel);
}

}  // namespace sparsekv::cpu
