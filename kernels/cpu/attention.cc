#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/cpu/attention-inl.h"
#include "kernels/cpu/attention_few-inl.h"
#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/operations.h"
#include "kernels/plain.h"

HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

// Stands for rows that a tile does not have: they must be readable, and weigh nothing.
alignas(64) constexpr std::byte kZeroRow[2 * kMaxHeadDim * sizeof(float)] = {};

size_t PaddedDim(const AttendArgs& args) { return RoundUp(args.head_dim, kLanes); }

// The scratch of a thread that works on one block.
struct Workspace {
  float* q = nullptr;        // [rows, head_dim]
  float* keys = nullptr;     // [head_dim, kAttendTile]
  float* values = nullptr;   // [kAttendTile, padded]
  float* scores = nullptr;   // [rows, kAttendTile]
  float* factors = nullptr;  // [rows]
  AttendPartial part;
  AttendPartial total;

  static size_t Floats(const AttendArgs& args, size_t rows) {
    const size_t padded = PaddedDim(args);
    return rows * (args.head_dim + kAttendTile + 1) + kAttendTile * (args.head_dim + padded) +
           2 * AttendPartial::Floats(rows, padded);
  }

  Workspace() = default;
  Workspace(const AttendArgs& args, size_t rows, float* memory) {
    const size_t padded = PaddedDim(args);
    keys = memory;
    values = keys + args.head_dim * kAttendTile;
    scores = values + kAttendTile * padded;
    q = scores + rows * kAttendTile;
    factors = q + rows * args.head_dim;
    part = AttendPartial(factors + rows, rows, padded);
    total = AttendPartial(part.sums + AttendPartial::Floats(rows, padded), rows, padded);
  }
};

void LoadQueries(const AttendBlock& block, float* q) {
  const size_t floats = size_t{block.args->group} * block.args->head_dim;
  for (uint32_t t = 0; t < block.tokens; ++t) {
    memcpy(q + t * floats, block.args->q + block.HeadOffset(t), floats * sizeof(float));
  }
}

// Where the rows of a tile lie: the entries from `begin` on that some list of the block has.
struct TileRows {
  static constexpr size_t kRowsAbreast = 16;  // that are fetched side by side
  static_assert(kAttendTile % kRowsAbreast == 0);
  const std::byte* rows[kAttendTile];

  void Find(const AttendBlock& block, uint32_t begin) {
    const uint32_t first = HWY_MAX(begin, block.Begin(0));
    const uint32_t end = HWY_MIN(begin + kAttendTile, block.end());
    if (first >= end || end - first < kAttendTile) {
      for (const std::byte*& row : rows) row = kZeroRow;
    }
    if (first < end) block.FindRows(first, end, rows + (first - begin));
  }

  // At once, where no tile before did.
  void Fetch(size_t row_bytes) const {
    LineFetch<kRowsAbreast> fetch(rows, kAttendTile / kRowsAbreast, row_bytes);
    for (size_t at = 0; at < kAttendTile * row_bytes; at += fetch.kBurst) fetch.Burst();
  }

  // Whether they lie one behind the other.
  bool Follow(size_t row_bytes) const {
    return rows[kAttendTile - 1] == rows[0] + (kAttendTile - 1) * row_bytes;
  }
};

// A block's rows that are so few that they are multiplied with K and V as they lie.
bool IsFew(const AttendBlock& block) { return block.rows() <= kFewRows; }

// Entries of a tile: [from, to).
struct TileRange {
  size_t from = 0, to = 0;
  bool operator==(const TileRange&) const = default;
};

// Scores of the rows [first, end) into weights; a few rows at a time, so that one does not wait for
// the highest score of another.
template <class Fetch>
void WeighRows(const Workspace& work, const AttendPartial& part, size_t first, size_t end,
               TileRange range, float scale, Fetch& fetch) {
  constexpr size_t kRows = 4;
  for (; first < end; first += kRows) {
    const size_t rows = HWY_MIN(kRows, end - first);
    float* scores = work.scores + first * kAttendTile;
    VF highest[kRows];
    for (size_t r = 0; r < rows; ++r) {
      highest[r] = ScaleScores(scores + r * kAttendTile, range.from, range.to, scale,
                               part.maximum[first + r]);
    }
    for (size_t r = 0; r < rows; ++r) {
      fetch.Burst();  // else the memory would be idle meanwhile
      work.factors[first + r] = WeighScores(scores + r * kAttendTile, highest[r],
                                            part.maximum + first + r, part.total + first + r);
    }
  }
}

// Adds the tile's entries in the range to the rows of tokens [token, token + tokens).
template <class Fetch>
void AddWeighted(const AttendBlock& block, const Workspace& work, const AttendPartial& part,
                 uint32_t token, uint32_t tokens, TileRange range, const TileRows& tile,
                 Fetch& fetch) {
  const size_t padded = PaddedDim(*block.args);
  const size_t first = size_t{token} * block.args->group;
  const size_t rows = size_t{tokens} * block.args->group;
  WeighRows(work, part, first, first + rows, range, block.args->scale, fetch);
  const float* weights = work.scores + first * kAttendTile + range.from;
  if (IsFew(block)) {
    AddValuesFew({.tile = tile.rows + range.from,
                  .count = range.to - range.from,
                  .head_dim = block.args->head_dim,
                  .weights = weights,
                  .factors = work.factors + first,
                  .sums = part.sums + first * padded,
                  .padded = padded},
                 rows, block.item->rows.layout->dtype, fetch);
    return;
  }
  const Product product{.a = weights,
                        .a_stride = kAttendTile,
                        .b = work.values + range.from * padded,
                        .b_stride = padded,
                        .depth = range.to - range.from,
                        .c = part.sums + first * padded,
                        .c_stride = padded,
                        .factors = work.factors + first};
  Multiply(product, rows, padded);
}

// Entries [begin, begin + count) of the lists, count <= kAttendTile, while the next tile is
// fetched.
template <class Fetch>
void AddTile(const AttendBlock& block, const Workspace& work, const AttendPartial& part,
             uint32_t begin, uint32_t count, const TileRows& tile, Fetch fetch) {
  const AttendArgs& args = *block.args;
  const DType dtype = block.item->rows.layout->dtype;
  // Dot products of every row that sees the tile. Those with entries outside of a row's list are
  // dropped by the softmax step.
  uint32_t token = block.FirstTokenWith(begin);
  const uint32_t tokens = block.TokensBefore(begin + count);
  const size_t rows = size_t{tokens - token} * args.group;
  const size_t first = size_t{token} * args.group;
  const float* q = work.q + first * args.head_dim;
  float* scores = work.scores + first * kAttendTile;
  if (IsFew(block)) {
    DotFew(tile.rows, q, rows, args.head_dim, dtype, fetch, reinterpret_cast<uint32_t*>(work.keys),
           scores);
  } else {
    TransposeKeys(tile.rows, args.head_dim, dtype, fetch, work.keys);
    WidenValues(tile.rows, count, args.head_dim, dtype, PaddedDim(args), fetch, work.values);
    Multiply({.a = q,
              .a_stride = args.head_dim,
              .b = work.keys,
              .b_stride = kAttendTile,
              .depth = args.head_dim,
              .c = scores,
              .c_stride = kAttendTile},
             rows, kAttendTile);
  }
  // Tokens that see all of the tile together, those whose lists begin or end inside it one by one.
  const TileRange all{0, count};
  const auto range_of = [&](uint32_t t) -> TileRange {
    return {HWY_MAX(block.Begin(t), begin) - begin, HWY_MIN(block.End(t) - begin, count)};
  };
  while (token < tokens) {
    const TileRange range = range_of(token);
    uint32_t end = token + 1;
    while (range == all && end < tokens && range_of(end) == all) ++end;
    AddWeighted(block, work, part, token, end - token, range, tile, fetch);
    token = end;
  }
}

// The same, where `next` will be the next tile, which is as large as the L1 cache. Rows of a whole
// context follow each other: the halves of the tile are fetched side by side, each in the order of
// its addresses, which the hardware's own prefetching understands. More lines at once are slower,
// as it follows fewer stretches; of rows that lie apart there is nothing to follow.
void AddTile(const AttendBlock& block, const Workspace& work, const AttendPartial& part,
             uint32_t begin, uint32_t count, const TileRows& tile, const TileRows& next) {
  constexpr size_t kRowsAbreast = TileRows::kRowsAbreast;
  const size_t row_bytes = block.item->rows.layout->row_bytes();
  if (next.Follow(row_bytes)) {
    const std::byte* const halves[2] = {next.rows[0], next.rows[kAttendTile / 2]};
    const LineFetch<2> fetch(halves, 1, kAttendTile / 2 * row_bytes);
    AddTile(block, work, part, begin, count, tile, fetch);
  } else {
    const LineFetch<kRowsAbreast> fetch(next.rows, kAttendTile / kRowsAbreast, row_bytes);
    AddTile(block, work, part, begin, count, tile, fetch);
  }
}

// Blocks of a task, tile by tile in turn: neighbouring KV heads of the same tokens, whose rows lie
// side by side, so that the memory is read in longer stretches.
struct InTurn {
  const AttendBlock* blocks = nullptr;
  size_t count = 0;
  Workspace works[kMaxInTurn];

  InTurn(const AttendBlock* first, size_t number, Scratch& scratch, unsigned thread)
      : blocks(first), count(number) {
    const size_t rows = first->rows();
    const size_t floats = RoundUp(Workspace::Floats(*first->args, rows), 16);  // whole lines
    float* memory = scratch.Get(thread, count * floats);
    for (size_t b = 0; b < count; ++b, memory += floats) {
      works[b] = Workspace(*first->args, rows, memory);
      LoadQueries(blocks[b], works[b].q);
    }
  }
};

// parts[b] = the split of blocks[b]. `is_first`: of a task; the others' first tile was fetched by
// the split before.
void AddSplit(const InTurn& all, const AttendPartial* parts, uint32_t split, bool is_first) {
  const AttendBlock& first = all.blocks[0];
  const size_t rows = first.rows();
  for (size_t b = 0; b < all.count; ++b) {
    for (size_t r = 0; r < rows; ++r) {
      parts[b].maximum[r] = -HUGE_VALF;
      parts[b].total[r] = 0;
    }
    memset(parts[b].sums, 0, rows * PaddedDim(*first.args) * sizeof(float));
  }
  const uint32_t end = HWY_MIN(first.end(), (split + 1) * kAttendSplit);
  TileRows tiles[2];
  uint32_t begin = HWY_MAX(split * kAttendSplit, first.Begin(0) / kAttendTile * kAttendTile);
  size_t b = 0;
  tiles[0].Find(first, begin);
  if (is_first) tiles[0].Fetch(first.item->rows.layout->row_bytes());
  for (uint32_t i = 0; begin < end; ++i) {
    const size_t block = b;
    const uint32_t from = begin;
    if (++b == all.count) b = 0, begin += kAttendTile;
    TileRows& next = tiles[(i + 1) % 2];
    next.Find(all.blocks[b], begin);  // the next split's at the end
    AddTile(all.blocks[block], all.works[block], parts[block], from,
            HWY_MIN(kAttendTile, end - from), tiles[i % 2], next);
  }
}

// total = total and the split's part, for the rows whose lists reach into the split; the part alone
// where they begin there.
void MergeSplit(const AttendBlock& block, const AttendPartial& total, const AttendPartial& part,
                uint32_t split) {
  const DF d;
  const size_t padded = PaddedDim(*block.args);
  const size_t group = block.args->group;
  const uint32_t token = block.FirstTokenWith(split * kAttendSplit);
  const uint32_t tokens = block.TokensBefore((split + 1) * kAttendSplit);
  for (size_t r = token * group; r < tokens * group; ++r) {
    if (block.Begin(static_cast<uint32_t>(r / group)) / kAttendSplit == split) {
      total.maximum[r] = part.maximum[r];
      total.total[r] = part.total[r];
      memcpy(total.sums + r * padded, part.sums + r * padded, padded * sizeof(float));
      continue;
    }
    const float highest = HWY_MAX(total.maximum[r], part.maximum[r]);
    const float keep = Exp(total.maximum[r] - highest);
    const float add = Exp(part.maximum[r] - highest);
    total.maximum[r] = highest;
    total.total[r] = total.total[r] * keep + part.total[r] * add;
    for (size_t c = 0; c < padded; c += kLanes) {
      const VF kept = hn::Mul(hn::LoadU(d, total.sums + r * padded + c), hn::Set(d, keep));
      const VF added = hn::LoadU(d, part.sums + r * padded + c);
      hn::StoreU(hn::MulAdd(added, hn::Set(d, add), kept), d, total.sums + r * padded + c);
    }
  }
}

// to[c] = scale * sum c, of sums in the order of LoadValues.
void WriteRow(const float* sums, float scale, size_t count, DType dtype, float* to) {
  const DF d;
  const VF scales = hn::Set(d, scale);
  size_t c = 0;
  for (; dtype == DType::kBF16 && c + 2 * kLanes <= count; c += 2 * kLanes) {
    const VF even = hn::Mul(hn::LoadU(d, sums + c), scales);
    const VF odd = hn::Mul(hn::LoadU(d, sums + c + kLanes), scales);
    hn::StoreInterleaved2(even, odd, d, to + c);
  }
  for (; c < count; ++c) to[c] = sums[c] * scale;
}

void WriteOut(const AttendBlock& block, const AttendPartial& total) {
  const size_t dim = block.args->head_dim;
  const size_t padded = PaddedDim(*block.args);
  for (uint32_t t = 0; t < block.tokens; ++t) {
    float* out = block.args->out + block.HeadOffset(t);
    for (size_t g = 0; g < block.args->group; ++g) {
      const size_t r = size_t{t} * block.args->group + g;
      WriteRow(total.sums + r * padded, 1.0f / total.total[r], dim, block.item->rows.layout->dtype,
               out + g * dim);
    }
  }
}

// `count` blocks in turn.
void AttendWhole(const AttendBlock* blocks, size_t count, Scratch& scratch, unsigned thread) {
  const InTurn all(blocks, count, scratch, thread);
  AttendPartial parts[kMaxInTurn], totals[kMaxInTurn];
  for (size_t b = 0; b < count; ++b) {
    parts[b] = all.works[b].part;
    totals[b] = all.works[b].total;
  }
  const uint32_t first = blocks[0].first_split();
  AddSplit(all, totals, first, true);
  for (uint32_t i = 1; i < blocks[0].splits(); ++i) {
    AddSplit(all, parts, first + i, false);
    for (size_t b = 0; b < count; ++b) MergeSplit(blocks[b], totals[b], parts[b], first + i);
  }
  for (size_t b = 0; b < count; ++b) WriteOut(blocks[b], totals[b]);
}

// `partials` holds the block's splits one after the other, the first that it has at 0.
AttendPartial PartialOf(const AttendBlock& block, float* partials, uint32_t split) {
  const size_t padded = PaddedDim(*block.args);
  const size_t floats = AttendPartial::Floats(block.rows(), padded);
  return AttendPartial(partials + split * floats, block.rows(), padded);
}

void AttendSplit(const AttendBlock& block, uint32_t split, float* partials, Scratch& scratch,
                 unsigned thread) {
  const InTurn alone(&block, 1, scratch, thread);
  const AttendPartial part = PartialOf(block, partials, split);
  AddSplit(alone, &part, block.first_split() + split, true);
}

void MergeSplits(const AttendBlock& block, float* partials) {
  const AttendPartial total = PartialOf(block, partials, 0);
  for (uint32_t split = 1; split < block.splits(); ++split) {
    MergeSplit(block, total, PartialOf(block, partials, split), block.first_split() + split);
  }
  WriteOut(block, total);
}

size_t PartialFloats(const AttendBlock& block) {
  return AttendPartial::Floats(block.rows(), PaddedDim(*block.args)) * block.splits();
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv::cpu {
namespace {

HWY_EXPORT(AttendWhole);
HWY_EXPORT(AttendSplit);
HWY_EXPORT(MergeSplits);
HWY_EXPORT(PartialFloats);

// Rows of a block: enough that widening a tile costs little beside using it, few enough that scores
// and sums stay in the L2 cache.
constexpr uint32_t kBlockRows = 48;
// Fewer blocks per thread than this, and splits become tasks of their own.
constexpr size_t kMinBlocksPerThread = 4;
constexpr size_t kMaxPartialFloats = size_t{16} << 20;

std::vector<AttendBlock> MakeBlocks(const AttendArgs& args) {
  std::vector<AttendBlock> blocks;
  const uint32_t block_tokens = args.group < kBlockRows ? kBlockRows / args.group : 1;
  for (const AttendArgs::Item& item : args.items) {
    CHECK(item.selection == nullptr || item.span.tokens == 1);
    CHECK(item.selection == nullptr || item.count > 0);
    for (uint32_t t = 0; t < item.span.tokens; t += block_tokens) {
      const uint32_t left = item.span.tokens - t;
      for (uint32_t kv_head = 0; kv_head < args.kv_heads; ++kv_head) {
        blocks.push_back({.args = &args,
                          .item = &item,
                          .kv_head = kv_head,
                          .first_token = t,
                          .tokens = left < block_tokens ? left : block_tokens});
      }
    }
  }
  return blocks;
}

// How many blocks, neighbouring KV heads, a task takes in turn: two of a decode step, where no
// thread has more to do then. More heads or tokens share so much arithmetic that memory does not
// matter.
size_t BlocksInTurn(const AttendArgs& args, size_t blocks, unsigned threads) {
  if (args.kv_heads % kMaxInTurn != 0) return 1;
  const auto of_thread = [&](size_t tasks) { return (tasks + threads - 1) / threads; };
  if (kMaxInTurn * of_thread(blocks / kMaxInTurn) > of_thread(blocks)) return 1;
  for (const AttendArgs::Item& item : args.items) {
    if (item.span.tokens * args.group > kFewRows) return 1;
  }
  return kMaxInTurn;
}

void AttendBySplits(const std::vector<AttendBlock>& blocks, size_t floats, Context& context) {
  struct Task {
    uint32_t block;
    uint32_t split;
  };
  std::vector<Task> tasks;
  std::vector<float*> partials;
  float* free = context.shared.Get(0, floats);
  for (uint32_t b = 0; b < blocks.size(); ++b) {
    for (uint32_t split = 0; split < blocks[b].splits(); ++split) tasks.push_back({b, split});
    partials.push_back(free);
    free += HWY_DYNAMIC_DISPATCH(PartialFloats)(blocks[b]);
  }
  const auto attend = HWY_DYNAMIC_DISPATCH(AttendSplit);
  context.pool.Run(static_cast<uint32_t>(tasks.size()), [&](uint32_t i, unsigned thread) {
    const Task& task = tasks[i];
    attend(blocks[task.block], task.split, partials[task.block], context.scratch, thread);
  });
  const auto merge = HWY_DYNAMIC_DISPATCH(MergeSplits);
  context.pool.Run(static_cast<uint32_t>(blocks.size()),
                   [&](uint32_t b, unsigned) { merge(blocks[b], partials[b]); });
}

}  // namespace

void Attend(const AttendArgs& args, Context& context) {
  CHECK(args.head_dim >= 8 && args.head_dim <= kMaxHeadDim && args.head_dim % 8 == 0);
  plain::LandRows(args);
  const std::vector<AttendBlock> blocks = MakeBlocks(args);
  size_t splits = 0;
  size_t floats = 0;
  for (const AttendBlock& block : blocks) {
    splits += block.splits();
    floats += HWY_DYNAMIC_DISPATCH(PartialFloats)(block);
  }
  const unsigned threads = context.pool.threads();
  if (threads > 1 && splits > blocks.size() && floats <= kMaxPartialFloats &&
      blocks.size() < kMinBlocksPerThread * threads) {
    AttendBySplits(blocks, floats, context);
    return;
  }
  const size_t in_turn = BlocksInTurn(args, blocks.size(), threads);
  const auto attend = HWY_DYNAMIC_DISPATCH(AttendWhole);
  context.pool.Run(static_cast<uint32_t>(blocks.size() / in_turn),
                   [&](uint32_t i, unsigned thread) {
                     attend(&blocks[i * in_turn], in_turn, context.scratch, thread);
                   });
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
