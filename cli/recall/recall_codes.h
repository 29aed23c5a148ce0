#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sparsekv {

// The vocabulary of recall checkpoints: keys, their value forms, filler.
inline constexpr uint32_t kRecallVocab = 4096;
inline constexpr uint32_t kRecallKeys = 1000;         // ids 0..999
inline constexpr uint32_t kRecallFirstFiller = 2000;  // ids 2000..4095

constexpr uint32_t ValueForm(uint32_t key) { return kRecallKeys + key; }

// How hard it is to find a code by its heavy components alone, which is all that labels hold.
enum class RecallDifficulty : uint8_t {
  kEasy,  // the heavy components alone tell every two codes apart, with the same energy in each
  kHard,  // the heavy components are amplified noise: some codes hardly show in them
};

// One code per token: what a token is, as a direction. The first `heavy` components carry about 60
// % of a code's energy, as a few channels of real models' keys do. Every component is a multiple of
// 1/16 below 8, so bfloat16 and float16 hold it exactly.
//
// Easy codes: the heavy components of a code are a point of a lattice shell (8 components: the
// 6,720 points of norm 6 of E8; 4: the 4,176 integer points of norm 521), another one for each
// token. All points of a shell have the same energy, so a token's own heavy components score
// strictly higher with themselves than any other token's: by a sixth at least in E8.
struct RecallCodes {
  uint32_t dims = 0;          // components of a code, 32 or 64
  uint32_t heavy = 0;         // of them heavy, dims / 8
  double energy = 0;          // |code|^2; equal for all easy codes, the mean of hard ones
  std::vector<float> values;  // [kRecallVocab, dims]

  std::span<const float> Code(uint32_t token) const {
    return std::span<const float>(values).subspan(size_t{token} * dims, dims);
  }
};

// REQUIRES: dims is 32 or 64.
RecallCodes MakeRecallCodes(RecallDifficulty difficulty, uint32_t dims, uint64_t seed);

}  // namespace sparsekv
