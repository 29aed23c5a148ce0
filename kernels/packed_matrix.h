#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/host_memory.h"
#include "kernels/matrix.h"

namespace sparsekv {

// A matrix of integer codes with its own memory, in the layout that products take (encoding.h).
// Panels may be set by several threads, each panel by one; view() is valid when all are, and as
// long as this lives.
class PackedMatrix {
 public:
  struct Shape {
    Encoding encoding = Encoding::kInt4;  // kInt4 or kInt8
    uint32_t rows = 0;
    uint32_t cols = 0;
    uint32_t group = 0;  // REQUIRES: cols, or a multiple of 8 that divides cols
    DType scale_type = DType::kF16;
  };
  PackedMatrix() = default;
  // `order`: empty, or a permutation of the inputs: the input at each place. `has_zeros`: every
  // group of an output has a zero point of its own; else all are `zero`.
  PackedMatrix(const Shape& shape, std::vector<uint32_t> order, bool has_zeros, uint8_t zero);

  uint32_t panels() const { return CeilDivide(shape_.rows, kPanelOutputs); }
  uint32_t groups() const { return CeilDivide(shape_.cols, shape_.group); }

  // One panel, from bytes [inputs in order][16]; beyond `rows` anything.
  void SetCodes(uint32_t panel, const uint8_t* codes);
  // REQUIRES: has_zeros.
  void SetZero(uint32_t output, uint32_t group, uint8_t zero) { zeros()[At(output, group)] = zero; }
  // Where the scale of an output and group goes, of the scale type.
  std::byte* Scale(uint32_t output, uint32_t group) {
    return scales_.get() + At(output, group) * SizeOf(shape_.scale_type);
  }

  const WeightView& view() const { return view_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { FreeOnHost(memory); }
  };
  using Memory = std::unique_ptr<std::byte[], Free>;
  static Memory Allocate(size_t bytes);

  uint8_t* zeros() { return reinterpret_cast<uint8_t*>(zeros_.get()); }
  size_t At(uint32_t output, uint32_t group) const {
    return (size_t{output / kPanelOutputs} * groups() + group) * kPanelOutputs +
           output % kPanelOutputs;
  }

  Shape shape_;
  Memory words_, scales_, zeros_;
  std::vector<uint32_t> order_;
  WeightView view_;
};

}  // namespace sparsekv
