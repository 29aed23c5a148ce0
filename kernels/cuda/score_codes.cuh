#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/label_codes.cuh"
#include "kernels/cuda/score_part.cuh"

// Scores of labels that are codes: what a CTA keeps of its queries, and what a lane computes of
// neighbouring tokens. Sums of products of codes are integers, exact in any order.
namespace sparsekv::cuda::scoring {

template <uint32_t kHeads>
struct alignas(kHeads < 4 ? 4 * kHeads : 16) HeadWords {
  uint32_t of[kHeads];
};

// The coded queries of a group in shared memory, in blocks of kHeads query heads: of a block
// QueryWords words of every head, then their scales.
template <uint32_t kHeads>
struct CodedQueries {
  HeadWords<kHeads>* blocks;
  uint32_t words;  // QueryWords

  __device__ HeadWords<kHeads>* Block(uint32_t block) const { return blocks + block * (words + 2); }
  __device__ codes::QueryScale Scale(uint32_t block, uint32_t h) const {
    const HeadWords<kHeads>* scales = Block(block) + words;
    return {__uint_as_float(scales[0].of[h]), __uint_as_float(scales[1].of[h])};
  }
  // Floats that GatherQueries and these take together.
  __host__ __device__ static uint32_t Floats(uint32_t group, uint32_t channels,
                                             uint32_t query_words) {
    return (group + kHeads - 1) / kHeads * kHeads * (channels + query_words + 2);
  }
};

// Gathers the part's queries, scaled for the pooling, and codes them behind.
template <uint32_t kHeads, uint32_t kCtaThreads, typename Job, typename HeadPart>
__device__ CodedQueries<kHeads> GatherCodedQueries(const Job& job, const HeadPart& part,
                                                   float* queries) {
  GatherQueries<kHeads, kCtaThreads>(job, part, queries);
  const uint32_t heads = (job.group + kHeads - 1) / kHeads * kHeads;
  const CodedQueries<kHeads> coded = {
      reinterpret_cast<HeadWords<kHeads>*>(queries + heads * job.channels),
      codes::QueryWords(job.words, job.bits)};
#pragma unroll 1
  for (uint32_t g = WarpId(); g < heads; g += kCtaThreads / kWarpThreads) {
    const uint32_t h = g % kHeads;
    HeadWords<kHeads>* block = coded.Block(g / kHeads);
    const float* values = queries + g / kHeads * job.channels * kHeads + h;
    const codes::QueryScale scale = codes::CodeQuery(
        job.channels, job.words, job.bits, [&](uint32_t c) { return values[c * kHeads]; },
        [&](uint32_t i) -> uint32_t& { return block[i].of[h]; });
    if (LaneId() == 0) {
      block[coded.words].of[h] = __float_as_uint(scale.unit);
      block[coded.words + 1].of[h] = __float_as_uint(scale.sum);
    }
  }
  __syncthreads();
  return coded;
}

// Adds a word of codes of neighbouring tokens to the heads' sums; `query`: its 8 / bits words.
template <uint32_t kHeads, uint32_t kTokens>
__device__ void AddWord(const uint32_t (&words)[kTokens], uint32_t bits,
                        const HeadWords<kHeads>* query, int32_t (&dots)[kHeads][kTokens]) {
  const uint32_t mask = codes::ByteMask(bits);
#pragma unroll 1
  for (uint32_t shift = 0; shift < 8; shift += bits, ++query) {
    const HeadWords<kHeads> q = *query;
#pragma unroll
    for (uint32_t t = 0; t < kTokens; ++t) {
      const uint32_t label = words[t] >> shift & mask;
#pragma unroll
      for (uint32_t h = 0; h < kHeads; ++h) dots[h][t] = codes::Dot(label, q.of[h], dots[h][t]);
    }
  }
}

// Two float16 of a word as float32.
__device__ inline void WidenHalves(uint32_t word, float& low, float& high) {
  low = __half2float(__ushort_as_half(static_cast<uint16_t>(word)));
  high = __half2float(__ushort_as_half(static_cast<uint16_t>(word >> 16)));
}

// scores = CodedScore of neighbouring tokens by one query head.
template <uint32_t kTokens>
__device__ void ToScores(codes::QueryScale query, const uint32_t (&steps)[kTokens / 2],
                         const uint32_t (&leasts)[kTokens / 2], const int32_t (&dots)[kTokens],
                         float (&scores)[kTokens]) {
#pragma unroll
  for (uint32_t t = 0; t < kTokens; t += 2) {
    float step[2], least[2];
    WidenHalves(steps[t / 2], step[0], step[1]);
    WidenHalves(leasts[t / 2], least[0], least[1]);
    scores[t] = codes::Score(query, step[0], least[0], dots[t]);
    scores[t + 1] = codes::Score(query, step[1], least[1], dots[t + 1]);
  }
}

}  // namespace sparsekv::cuda::scoring
