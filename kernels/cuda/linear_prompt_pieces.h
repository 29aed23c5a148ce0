#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "kernels/cuda/tape.h"

// What lies between a prompt's arrays and the pieces that the library multiplies: pieces have one
// shape whatever the number of tokens, are of the weights' type, and aligned to 16 bytes.
namespace sparsekv::cuda {

inline constexpr uint32_t kPieceTokens = 512;

// Which of two numbers of the weights' type, whose sum is x but for what they round.
enum class Half { kHigh, kLow };

// piece[t, i] = x[t, i] rounded to nearest even; what is beyond the type's largest number becomes
// that number. kLow: what that left of x[t, i], rounded likewise; REQUIRES 16 bits. Zero where
// t >= tokens or i >= inputs. REQUIRES: `stride`, the row length of `piece`
// [kPieceTokens, stride], is a multiple of 8 and at least `inputs`; piece is aligned to 16 bytes.
void FillPiece(const float* x, Half half, uint32_t tokens, uint32_t inputs, uint32_t stride,
               DType dtype, std::byte* piece, Tape& tape);

// The matrix [rows, cols] with rows of `stride` values, zeros at their ends. REQUIRES as above.
void PadWeights(const void* weights, uint32_t rows, uint32_t cols, uint32_t stride, DType dtype,
                std::byte* padded, Tape& tape);

// y[t, o] = results[t, o] for t < tokens, o < outputs; with `add` that is added to y.
void TakeResults(const float* results, uint32_t stride, uint32_t tokens, uint32_t outputs, float* y,
                 size_t y_stride, bool add, Tape& tape);

}  // namespace sparsekv::cuda
