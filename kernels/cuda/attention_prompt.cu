#include <algorithm>
#include <numbers>
#include <type_traits>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_prompt_fma.cuh"
#include "kernels/cuda/attention_prompt_mma.cuh"

// Dense attention of a prompt's tokens: prompts' steps are no graphs, so grids and the choice of a
// kernel follow the lengths.
namespace sparsekv::cuda {
namespace {

using Items = std::span<const AttendArgs::Item>;

uint32_t TilesOf(const AttendArgs& args, Items items, uint32_t tile_rows) {
  uint32_t tiles = 0;
  for (const AttendArgs::Item& item : items) {
    tiles += (item.span.tokens * args.group + tile_rows - 1) / tile_rows;
  }
  return tiles;
}

// Those with the longest lists first: what runs last is short.
std::vector<prompt::Tile> CutTiles(const AttendArgs& args, Items items, uint32_t tile_rows) {
  std::vector<prompt::Tile> tiles;
  tiles.reserve(TilesOf(args, items, tile_rows));
  for (uint32_t i = 0; i < items.size(); ++i) {
    const uint32_t rows = items[i].span.tokens * args.group;
    for (uint32_t row = 0; row < rows; row += tile_rows) tiles.push_back({i, row});
  }
  const auto position = [&](const prompt::Tile& tile) {
    return items[tile.item].span.position + tile.first_row / args.group;
  };
  std::ranges::stable_sort(tiles, std::ranges::greater{}, position);
  return tiles;
}

using Kernel = void (*)(prompt::Task);

void LaunchTiles(const AttendArgs& args, Items items, Tape& tape, Kernel kernel, uint32_t tile_rows,
                 uint32_t threads, uint32_t shared_bytes) {
  std::vector<prompt::Item> views;
  views.reserve(items.size());
  for (const AttendArgs::Item& item : items) {
    views.push_back({ViewOf(item.rows), item.span.first, item.span.tokens, item.span.position});
  }
  const std::vector<prompt::Tile> tiles = CutTiles(args, items, tile_rows);
  if (tiles.empty()) return;
  const prompt::Task task = {.q = args.q,
                             .out = args.out,
                             .items = tape.Params(views),
                             .tiles = tape.Params(tiles),
                             .kv_heads = args.kv_heads,
                             .group = args.group,
                             .head_dim = args.head_dim,
                             .scale = args.scale * std::numbers::log2e_v<float>};
  tape.Launch(kernel, dim3(static_cast<uint32_t>(tiles.size()) * args.kv_heads), dim3(threads),
              shared_bytes, task);
}

template <typename T, uint32_t kDim, uint32_t kWarpRows, bool kWhole>
void LaunchMma(const AttendArgs& args, Items items, Tape& tape) {
  using G = prompt::MmaGeometry<kDim, kWarpRows>;
  LaunchTiles(args, items, tape, prompt::MmaKernel<T, G, kWhole>, G::kRows, prompt::kMmaThreads,
              G::kBytes);
}

// 32 query rows per warp take each row of K and V from shared memory for two products; where that
// leaves multiprocessors with one CTA or none, 16 do. A row's bits are the same.
template <typename T, uint32_t kDim>
void LaunchWhole(const AttendArgs& args, Items items, Tape& tape) {
  const uint32_t tile_rows = prompt::MmaGeometry<kDim, 32>::kRows;
  const uint64_t ctas = uint64_t{TilesOf(args, items, tile_rows)} * args.kv_heads;
  if (ctas > static_cast<uint32_t>(tape.multiprocessors())) {
    LaunchMma<T, kDim, 32, true>(args, items, tape);
  } else {
    LaunchMma<T, kDim, 16, true>(args, items, tape);
  }
}

template <typename T>
void LaunchHalves(const AttendArgs& args, Items items, Tape& tape) {
  if (args.head_dim == 64) return LaunchWhole<T, 64>(args, items, tape);
  if (args.head_dim == 128) return LaunchWhole<T, 128>(args, items, tape);
  if (args.head_dim < 64) return LaunchMma<T, 64, 16, false>(args, items, tape);
  if (args.head_dim < 128) return LaunchMma<T, 128, 16, false>(args, items, tape);
  LaunchMma<T, 256, 16, false>(args, items, tape);
}

template <uint32_t kDim, uint32_t kRows, uint32_t kTile>
void LaunchFma(const AttendArgs& args, Items items, Tape& tape) {
  using G = prompt::FmaGeometry<kDim, kRows, kTile>;
  LaunchTiles(args, items, tape, prompt::FmaKernel<G>, G::kRows, G::kThreads, G::kBytes);
}

void LaunchFloats(const AttendArgs& args, Items items, Tape& tape) {
  if (args.head_dim <= 64) return LaunchFma<64, 64, 64>(args, items, tape);
  if (args.head_dim <= 128) return LaunchFma<128, 64, 64>(args, items, tape);
  LaunchFma<256, 32, 32>(args, items, tape);
}

}  // namespace

void AttendPrompt(const AttendArgs& args, Items items, Tape& tape) {
  if (items.empty()) return;
  CHECK_GT(args.scale, 0.0f);
  CHECK_LE(args.head_dim, kMaxHeadDim);
  CHECK_EQ(args.head_dim % 8, 0u);
  const DType dtype = items[0].rows.layout->dtype;
  for (const AttendArgs::Item& item : items) {
    CHECK(item.selection == nullptr);
    CHECK(item.rows.layout->dtype == dtype && item.rows.layout->head_dim == args.head_dim);
  }
  WithType(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_same_v<T, float>) {
      LaunchFloats(args, items, tape);
    } else {
      LaunchHalves<T>(args, items, tape);
    }
  });
}

}  // namespace sparsekv::cuda
