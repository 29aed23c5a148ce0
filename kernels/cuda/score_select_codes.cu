#include "kernels/cuda/score_codes.cuh"
#include "kernels/cuda/score_select_codes.h"
#include "kernels/cuda/score_select_kernel.cuh"

// Scores of labels that are codes and the selection among them, in one kernel: LabelBytes in per
// token and KV head, but bound by instructions. The sums of products are the tensor cores':
// integers, exact in any order.
namespace sparsekv::cuda {
namespace {

using namespace fused;

// Up to 4 or 8 query heads, which the columns are; kSteps times 16 channels. Lanes take 32 tokens
// at a time: a quad's rows are its 4 neighbours, whose words all its lanes load, each for the codes
// that it unpacks. 4 heads: the columns are theirs for two tokens, then for the other two, so that
// a lane has two heads of two tokens; 8: two heads of all four. In the end each lane has a token.
template <uint32_t kHeads_, uint32_t kSteps>
struct CodeScorer {
  static constexpr uint32_t kHeads = kHeads_;
  static constexpr uint32_t kTokens = 4;
  static constexpr uint32_t kStride = kWarpThreads;
  static constexpr uint32_t kQuad = 4;
  static constexpr uint32_t kOwn = kHeads == 4 ? 2 : 4;  // tokens of a lane's sums
  static_assert(kHeads == 4 || kHeads == 8);

  uint32_t query[kSteps];  // codes of the lane's column
  codes::QueryScale scales[2];
  uint32_t word[kSteps];  // of a label, of which the lane unpacks
  uint32_t shift, mask;

  __device__ static uint32_t Lane() { return LaneId() % kQuad; }
  __device__ static uint32_t Quad() { return LaneId() / kQuad; }
  // Where the lane's tokens begin in its quad's.
  __device__ static uint32_t FirstOwn() { return kHeads == 4 ? Lane() / 2 * 2 : 0; }

  __device__ CodeScorer(const Job& job, const Part& part, Shared& shared) {
    const auto queries = scoring::GatherCodedQueries<kHeads, kThreads>(job, part, shared.queries);
    const uint32_t parts = 8u / job.bits;
#pragma unroll
    for (uint32_t s = 0; s < kSteps; ++s) {
      const uint32_t i = s * kQuad + Lane();  // word of a query that the lane's codes belong to
      query[s] = i < queries.words ? queries.Block(0)[i].of[Quad() % kHeads] : 0;
      word[s] = min(i / parts, job.words - 1);
    }
    shift = Lane() % parts * job.bits;
    mask = codes::ByteMask(job.bits);
    const uint32_t head = Lane() * 2 % kHeads;
    scales[0] = queries.Scale(0, head);
    scales[1] = queries.Scale(0, head + 1);
  }

  // D += A B: 16 tokens by 16 channels of unsigned codes, 8 columns of signed ones. Of a quad g of
  // lanes and its lane j: a[0], a[1] are four channels from 4 j on of rows g and g + 8, b of column
  // g; d[0], d[1] are columns 2 j and 2 j + 1 of row g, d[2], d[3] of row g + 8.
  __device__ static void MultiplyAdd(const uint32_t (&a)[2], uint32_t b, int32_t (&d)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
  }
  // The same of 32 channels: a[2], a[3], b[1] are those from 16 + 4 j on.
  __device__ static void MultiplyAdd(const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                     int32_t (&d)[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }

  // Sums of the lane's two heads: dots[t][h].
  __device__ void Multiply(const codes::Page& page, uint32_t token,
                           int32_t (&dots)[kOwn][2]) const {
    uint32_t words[kSteps][4];
#pragma unroll
    for (uint32_t s = 0; s < kSteps; ++s) {
      const auto* from = reinterpret_cast<const uint4*>(page.Words(word[s]) + token);
      const uint4 four = __ldcs(from + Quad());
      words[s][0] = four.x >> shift & mask, words[s][1] = four.y >> shift & mask;
      words[s][2] = four.z >> shift & mask, words[s][3] = four.w >> shift & mask;
    }
    int32_t sums[kOwn / 2][4] = {};
#pragma unroll
    for (uint32_t t = 0; t < 4; t += 2) {
      // 4 heads: of the columns 0 to 3, then of 4 to 7.
      const bool mine = kHeads == 8 || Quad() / 4 == t / 2;
      int32_t(&d)[4] = sums[kHeads == 4 ? 0 : t / 2];
#pragma unroll
      for (uint32_t s = 0; s < kSteps; s += 2) {
        const uint32_t b = mine ? query[s] : 0;
        if constexpr (kSteps == 1) {
          MultiplyAdd({words[s][t], words[s][t + 1]}, b, d);
        } else {
          MultiplyAdd({words[s][t], words[s][t + 1], words[s + 1][t], words[s + 1][t + 1]}, b,
                      mine ? query[s + 1] : 0, d);
        }
      }
    }
#pragma unroll
    for (uint32_t t = 0; t < kOwn; ++t) {
      dots[t][0] = sums[t / 2][t % 2 * 2];
      dots[t][1] = sums[t / 2][t % 2 * 2 + 1];
    }
  }

  // Of the lane's tokens the higher score of its two heads.
  __device__ void HigherOfTwo(const codes::Page& page, uint32_t token,
                              float (&higher)[kOwn]) const {
    int32_t dots[kOwn][2];
    Multiply(page, token, dots);
    const uint32_t own = token + Quad() * kQuad + FirstOwn();
#pragma unroll
    for (uint32_t t = 0; t < kOwn; t += 2) {
      float step[2], least[2];
      scoring::WidenHalves(__ldcs(reinterpret_cast<const uint32_t*>(page.Steps() + own + t)),
                           step[0], step[1]);
      scoring::WidenHalves(__ldcs(reinterpret_cast<const uint32_t*>(page.Leasts() + own + t)),
                           least[0], least[1]);
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const float a = codes::Score(scales[0], step[i], least[i], dots[t + i][0]);
        const float b = codes::Score(scales[1], step[i], least[i], dots[t + i][1]);
        higher[t + i] = fmaxf(a, b);  // codes score numbers
      }
    }
  }

  // Lanes that differ in bit `lane` of their numbers share `kMany` tokens: the lower one keeps the
  // first half of them, the other one the second.
  template <uint32_t kMany>
  __device__ static void ShareOut(uint32_t lane, float (&values)[kOwn]) {
    const bool upper = (LaneId() & lane) != 0;
#pragma unroll
    for (uint32_t t = 0; t < kMany / 2; ++t) {
      const float given = upper ? values[t] : values[t + kMany / 2];
      const float kept = upper ? values[t + kMany / 2] : values[t];
      values[t] = fmaxf(kept, __shfl_xor_sync(kWholeWarp, given, lane));
    }
  }

  struct Ahead {};  // there are no registers for it
  __device__ void Begin(const std::byte* const*, Ahead&) const {}

  __device__ void Score(const Job&, const std::byte* const* pages, const std::byte* const*, Ahead&,
                        const Shared&, Pooled<kTokens>& pooled) const {
    constexpr uint32_t kOfPage = kBlockTokens / kWarpThreads;
#pragma unroll
    for (uint32_t i = 0; i < kTokens; ++i) {
      float higher[kOwn];
      HigherOfTwo({const_cast<std::byte*>(pages[i / kOfPage])}, i % kOfPage * kWarpThreads, higher);
      if constexpr (kHeads == 8) ShareOut<4>(2, higher);
      ShareOut<2>(1, higher);
      pooled.scores[i] = higher[0];
    }
  }
};

template <uint32_t kHeads>
uint32_t LaunchHeads(const Job& job, const Work& work, Tape& tape) {
  const uint32_t query_words = job.words * (8u / job.bits);
  const uint32_t floats =
      scoring::CodedQueries<kHeads>::Floats(job.group, job.channels, query_words);
  if (floats > kMostQueryValues) return 0;
  constexpr uint32_t kStepWords = 4;  // a quad of lanes has one each
  if (query_words <= kStepWords) return Launch<CodeScorer<kHeads, 1>>(job, work, tape);
  if (query_words <= 2 * kStepWords) return Launch<CodeScorer<kHeads, 2>>(job, work, tape);
  if (query_words <= 4 * kStepWords) return Launch<CodeScorer<kHeads, 4>>(job, work, tape);
  return 0;
}

}  // namespace

uint32_t fused::LaunchCoded(const Job& job, const Work& work, Tape& tape) {
  if (job.pooling != Pooling::kMaxNormalised || job.group > 8) return 0;
  if (job.group <= 4) return LaunchHeads<4>(job, work, tape);
  return LaunchHeads<8>(job, work, tape);
}

}  // namespace sparsekv::cuda
