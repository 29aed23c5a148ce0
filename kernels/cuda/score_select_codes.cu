#include "kernels/cuda/score_codes.cuh"
#include "kernels/cuda/score_select_codes.h"
#include "kernels/cuda/score_select_kernel.cuh"

// Scores of labels that are codes and the selection among them, in one kernel: bound by the labels'
// bytes, LabelBytes in per token and KV head.
namespace sparsekv::cuda {
namespace {

using namespace fused;

// kWords divides the number of words of a label.
template <uint32_t kHeads_, uint32_t kWords>
struct CodeScorer {
  static constexpr uint32_t kHeads = kHeads_;
  static constexpr bool kWide = kWords > 1;
  static constexpr uint32_t kTokens = kLaneTokens<kHeads>;

  scoring::CodedQueries<kHeads> queries;

  __device__ CodeScorer(const Job& job, const Part& part, Shared& shared)
      : queries(scoring::GatherCodedQueries<kHeads, kThreads>(job, part, shared.queries)) {}

  __device__ static uint32_t Lines(const Job& job) { return job.lines; }

  // The lane's tokens in an array of a page. They are read once.
  __device__ static void Load(const uint32_t* words, uint32_t (&to)[kTokens]) {
    const uint32_t lane = LaneId() % Unit<kTokens>::kPageLanes;
    if constexpr (kTokens == 4) {
      const uint4 four = __ldcs(reinterpret_cast<const uint4*>(words) + lane);
      to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
    } else {
      const uint2 two = __ldcs(reinterpret_cast<const uint2*>(words) + lane);
      to[0] = two.x, to[1] = two.y;
    }
  }
  __device__ static void Load(const uint16_t* halves, uint32_t (&to)[kTokens / 2]) {
    const uint32_t lane = LaneId() % Unit<kTokens>::kPageLanes;
    if constexpr (kTokens == 4) {
      const uint2 four = __ldcs(reinterpret_cast<const uint2*>(halves) + lane);
      to[0] = four.x, to[1] = four.y;
    } else {
      to[0] = __ldcs(reinterpret_cast<const uint32_t*>(halves) + lane);
    }
  }

  __device__ void Score(const Job& job, const std::byte* labels, const Shared&,
                        uint32_t (&keys)[kTokens]) const {
    const codes::Page page{const_cast<std::byte*>(labels)};
    Pooled<kTokens> pooled;
#pragma unroll 1
    for (uint32_t first = 0; first < job.group; first += kHeads) {
      uint32_t steps[kTokens / 2], leasts[kTokens / 2];
      Load(page.Steps(), steps);
      Load(page.Leasts(), leasts);
      int32_t dots[kHeads][kTokens] = {};
      const scoring::HeadWords<kHeads>* query = queries.Block(first / kHeads);
#pragma unroll 1
      for (uint32_t w = 0; w < job.words; w += kWords) {
        uint32_t words[kWords][kTokens];
#pragma unroll
        for (uint32_t i = 0; i < kWords; ++i) Load(page.Words(w + i), words[i]);
#pragma unroll
        for (uint32_t i = 0; i < kWords; ++i, query += 8 / job.bits) {
          scoring::AddWord<kHeads>(words[i], job.bits, query, dots);
        }
      }
      float scores[kHeads][kTokens];
#pragma unroll
      for (uint32_t h = 0; h < kHeads; ++h) {
        scoring::ToScores(queries.Scale(first / kHeads, h), steps, leasts, dots[h], scores[h]);
      }
      pooled.template Add<kHeads>(job, first, scores);
    }
    pooled.ToKeys(job, keys);
  }
};

template <uint32_t kHeads>
bool LaunchHeads(const Job& job, Tape& tape) {
  const uint32_t floats =
      scoring::CodedQueries<kHeads>::Floats(job.group, job.channels, job.words * (8u / job.bits));
  if (floats > kMostQueryValues) return false;
  if (job.words % 2 == 0) return Launch<CodeScorer<kHeads, 2>>(job, tape);
  return Launch<CodeScorer<kHeads, 1>>(job, tape);
}

}  // namespace

bool fused::LaunchCoded(const Job& job, Tape& tape) {
  if (job.group == 1) return LaunchHeads<1>(job, tape);
  if (job.group <= 4) return LaunchHeads<4>(job, tape);
  return LaunchHeads<kMostHeads>(job, tape);
}

}  // namespace sparsekv::cuda
