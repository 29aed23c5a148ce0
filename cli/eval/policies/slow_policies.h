#pragma once

#include <cstdint>
#include <vector>

// For tests: every policy's rule once more, as slow and as near to its paper as can be: whole
// sorts, doubles, no state but what the paper names. Keys are [tokens][head_dim], queries
// [group][head_dim], attention [tokens].
namespace sparsekv::slow {

using Vector = std::vector<double>;
using Matrix = std::vector<Vector>;
using Rows = std::vector<uint32_t>;

Vector Softmax(const Vector& scores);
// Mean over the group of softmax(q . k / sqrt(head_dim)), over the rows given.
Vector Attention(const Matrix& q, const Matrix& keys, const Rows& rows);
Rows All(uint32_t tokens);
// The `count` best, ties to the lower index, ascending; `forced` are among them.
Rows Best(const Vector& scores, uint32_t count, const Rows& forced);

Rows Oracle(const Matrix& q, const Matrix& keys, uint32_t count);
Rows DoubleSparsity(const Matrix& q, const Matrix& keys, const std::vector<uint32_t>& channels,
                    uint32_t count, uint32_t sinks, uint32_t recent);
Rows StreamingLlm(uint32_t tokens, uint32_t count, uint32_t sinks);
Rows Sparq(const Matrix& q, const Matrix& keys, uint32_t r, uint32_t count, uint32_t local,
           Vector* share);
Rows Quest(const Matrix& q, const Matrix& keys, uint32_t page, uint32_t count);

// One step after another; the cache is what the paper's algorithm keeps.
struct H2o {
  Rows cache;
  Vector received;  // of all tokens ever, by position
  Rows Step(const Matrix& q, const Matrix& keys, uint32_t count);
};
struct Scissorhands {
  uint32_t history, recent;
  double drop;
  Rows cache;
  std::vector<std::vector<bool>> low;  // [steps][tokens]: less than average
  void Remember(const Vector& attention, const Rows& rows, uint32_t tokens);
  Rows Step(const Matrix& q, const Matrix& keys, uint32_t count);
};
// kinds: 0 other, 1 special, 2 punctuation. maps: [queries][tokens then].
Rows FastGen(const std::vector<int>& kinds, const Matrix& maps, uint32_t tokens, uint32_t count,
             double recovery);

}  // namespace sparsekv::slow
