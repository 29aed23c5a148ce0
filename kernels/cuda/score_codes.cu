#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/score_codes.cuh"
#include "kernels/cuda/score_part.cuh"
#include "kernels/cuda/score_pool.cuh"

// Scores of label pages that hold codes. Bound by the labels' bytes: LabelBytes in, 4 out per token
// and KV head; one instruction multiplies and adds four channels of a token and query head.
//
// Units and lanes are as in score.cu: 8 neighbouring tokens per lane, here 32 bytes of a word of
// codes, of which a few words are on their way at a time.
namespace sparsekv::cuda {
namespace {

using namespace scoring;

// The lane's 8 tokens of an array of a page: float16 values or words. They are read once.
__device__ uint32_t FirstToken() { return LaneId() % kPageLanes * kLaneTokens; }
__device__ void Load(const uint16_t* values, uint32_t (&to)[kLaneTokens / 2]) {
  const uint4 all = __ldcs(reinterpret_cast<const uint4*>(values + FirstToken()));
  to[0] = all.x, to[1] = all.y, to[2] = all.z, to[3] = all.w;
}
__device__ void Load(const uint32_t* words, uint32_t (&to)[kLaneTokens]) {
  const auto* fours = reinterpret_cast<const uint4*>(words + FirstToken());
  const uint4 low = __ldcs(fours), high = __ldcs(fours + 1);
  to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
  to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

// The scores of the lane's tokens by a block of query heads. kWords divides the number of words.
template <uint32_t kHeads, uint32_t kWords>
__device__ void ScoreBlock(const ScoreJob& job, const std::byte* labels,
                           const CodedQueries<kHeads>& queries, uint32_t block,
                           float (&scores)[kHeads][kLaneTokens]) {
  const codes::Page page{const_cast<std::byte*>(labels)};
  uint32_t steps[kLaneTokens / 2], leasts[kLaneTokens / 2];
  Load(page.Steps(), steps);
  Load(page.Leasts(), leasts);
  int32_t dots[kHeads][kLaneTokens] = {};
  const HeadWords<kHeads>* query = queries.Block(block);
#pragma unroll 1
  for (uint32_t w = 0; w < job.words; w += kWords) {
    uint32_t words[kWords][kLaneTokens];
#pragma unroll
    for (uint32_t i = 0; i < kWords; ++i) Load(page.Words(w + i), words[i]);
#pragma unroll
    for (uint32_t i = 0; i < kWords; ++i, query += 8 / job.bits) {
      AddWord<kHeads>(words[i], job.bits, query, dots);
    }
  }
#pragma unroll
  for (uint32_t h = 0; h < kHeads; ++h) {
    ToScores(queries.Scale(block, h), steps, leasts, dots[h], scores[h]);
  }
}

template <uint32_t kHeads, uint32_t kWords, Make kMake>
__global__ void __launch_bounds__(kThreads, kCtas<kHeads>) CodedScoreKernel(const ScoreJob job) {
  BeginKernel();
  extern __shared__ float4 shared_queries[];
  __shared__ Part shared_part;
  ForParts(job, &shared_part, [&](const Part& part) {
    const auto queries =
        GatherCodedQueries<kHeads, kThreads>(job, part, reinterpret_cast<float*>(shared_queries));
    const std::byte* labels = LanePage(part, part.begin + WarpId());
#pragma unroll 1
    for (uint32_t unit = part.begin + WarpId(); unit < part.end; unit += kWarps) {
      const std::byte* next = LanePage(part, unit + kWarps);
      float pooled[kLaneTokens];
#pragma unroll 1
      for (uint32_t first = 0; first < job.group; first += kHeads) {
        float scores[kHeads][kLaneTokens] = {};
        if (labels) ScoreBlock<kHeads, kWords>(job, labels, queries, first / kHeads, scores);
        Pool<kHeads, kMake>(job, part, unit, first, scores, pooled);
      }
      if constexpr (kMake != Make::kPartials) StoreUnit(part, unit, pooled);
      labels = next;
    }
  });
}

template <uint32_t kHeads, uint32_t kWords, Make kMake>
void NoteKernel(const ScoreJob& job, Tape& tape) {
  const auto ctas = static_cast<uint32_t>(tape.multiprocessors()) * kCtas<kHeads>;
  const uint32_t floats =
      CodedQueries<kHeads>::Floats(job.group, job.channels, job.words * (8u / job.bits));
  tape.Launch(CodedScoreKernel<kHeads, kWords, kMake>, dim3(ctas), dim3(kThreads),
              floats * sizeof(float), job);
}

template <uint32_t kWords>
void Note(const ScoreJob& job, Tape& tape) {
  if (job.pooling == Pooling::kSoftmaxMass) {
    NoteKernel<4, kWords, Make::kPartials>(job, tape);
    NoteMerge(job, tape);
    return NoteKernel<4, kWords, Make::kMass>(job, tape);
  }
  if (job.group == 1) return NoteKernel<1, kWords, Make::kPooled>(job, tape);
  if (job.group <= 4) return NoteKernel<4, kWords, Make::kPooled>(job, tape);
  NoteKernel<kMostHeads, kWords, Make::kPooled>(job, tape);
}

}  // namespace

void scoring::NoteCodedScores(const ScoreJob& job, Tape& tape) {
  if (job.words % 2 == 0) return Note<2>(job, tape);
  Note<1>(job, tape);
}

}  // namespace sparsekv::cuda
