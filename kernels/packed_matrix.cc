#include "kernels/packed_matrix.h"

#include <new>
#include <utility>

#include "base/check.h"

namespace sparsekv {
namespace {

// Words of one panel from codes [inputs][16].
template <Encoding kEncoding>
void Pack(const uint8_t* codes, uint32_t inputs, uint32_t* words) {
  constexpr uint32_t kWords = WordsOfUnit(kEncoding);
  for (uint32_t first = 0; first < inputs; first += kUnitInputs) {
    uint32_t unit[kWords][kPanelOutputs] = {};
    const uint32_t count = inputs - first < kUnitInputs ? inputs - first : kUnitInputs;
    for (uint32_t j = 0; j < count; ++j, codes += kPanelOutputs) {
      const CodePlace place = PlaceOf(kEncoding, j);
      for (uint32_t o = 0; o < kPanelOutputs; ++o) {
        unit[place.word][o] |= uint32_t{codes[o]} << place.shift;
      }
    }
    for (uint32_t w = 0; w < kWords; ++w) {
      for (uint32_t o = 0; o < kPanelOutputs; ++o) *words++ = unit[w][o];
    }
  }
}

}  // namespace

PackedMatrix::Memory PackedMatrix::Allocate(size_t bytes) {
  std::byte* memory = AllocateOnHost(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return Memory(memory);
}

PackedMatrix::PackedMatrix(const Shape& shape, std::vector<uint32_t> order, bool has_zeros,
                           uint8_t zero)
    : shape_(shape), order_(std::move(order)) {
  CHECK(shape.encoding == Encoding::kInt4 || shape.encoding == Encoding::kInt8);
  CHECK_GT(shape.group, 0u);
  CHECK(shape.group == shape.cols ||
        (shape.group % kUnitInputs == 0 && shape.cols % shape.group == 0));
  CHECK(order_.empty() || order_.size() == shape.cols);
  const size_t outputs = size_t{panels()} * kPanelOutputs;
  const size_t words = size_t{CeilDivide(shape.cols, kUnitInputs)} * WordsOfUnit(shape.encoding);
  words_ = Allocate(outputs * words * sizeof(uint32_t));
  scales_ = Allocate(outputs * groups() * SizeOf(shape.scale_type));
  if (has_zeros) zeros_ = Allocate(outputs * groups());
  view_ = {.data = words_.get(),
           .dtype = shape.scale_type,
           .rows = shape.rows,
           .cols = shape.cols,
           .coding = {.encoding = shape.encoding,
                      .group = shape.group,
                      .scales = scales_.get(),
                      .zeros = has_zeros ? zeros() : nullptr,
                      .order = order_.empty() ? nullptr : order_.data(),
                      .zero = zero}};
}

void PackedMatrix::SetCodes(uint32_t panel, const uint8_t* codes) {
  CHECK_LT(panel, panels());
  const size_t words = size_t{CeilDivide(shape_.cols, kUnitInputs)} * kPanelOutputs;
  auto* to = reinterpret_cast<uint32_t*>(words_.get());
  if (shape_.encoding == Encoding::kInt4) {
    Pack<Encoding::kInt4>(codes, shape_.cols, to + panel * words);
  } else {
    Pack<Encoding::kInt8>(codes, shape_.cols, to + panel * words * 2);
  }
}

}  // namespace sparsekv
