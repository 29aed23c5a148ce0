#include "kernels/matrix.h"

#include <cstddef>

#include "base/check.h"
#include "kernels/half.h"

namespace sparsekv {
namespace {

uint32_t Groups(const WeightView& w) { return CeilDivide(w.cols, w.coding.group); }

void DecodeIntegers(const WeightView& w, uint32_t row, float* out) {
  const Coding& coding = w.coding;
  const uint32_t panel = row / kPanelOutputs, lane = row % kPanelOutputs;
  const uint32_t unit_words = WordsOfUnit(coding.encoding);
  const uint32_t units = CeilDivide(w.cols, kUnitInputs);
  const uint32_t mask = coding.encoding == Encoding::kInt4 ? 0xF : 0xFF;
  const auto* words = static_cast<const uint32_t*>(w.data) +
                      size_t{panel} * units * unit_words * kPanelOutputs + lane;
  for (uint32_t j = 0; j < w.cols; ++j) {
    const CodePlace place = PlaceOf(coding.encoding, j % kUnitInputs);
    const size_t word = size_t{j / kUnitInputs} * unit_words + place.word;
    const auto code = static_cast<int>(words[word * kPanelOutputs] >> place.shift & mask);
    const size_t at = (size_t{panel} * Groups(w) + j / coding.group) * kPanelOutputs + lane;
    const int zero = coding.zeros != nullptr ? coding.zeros[at] : coding.zero;
    out[coding.order != nullptr ? coding.order[j] : j] =
        LoadValue(coding.scales, at, w.dtype) * static_cast<float>(code - zero);
  }
}

void DecodeFp8(const WeightView& w, uint32_t row, float* out) {
  const auto* codes = static_cast<const uint8_t*>(w.data) + size_t{row} * w.cols;
  const auto* scales =
      static_cast<const float*>(w.coding.scales) + size_t{row / w.coding.block_rows} * Groups(w);
  for (uint32_t i = 0; i < w.cols; ++i) out[i] = FromE4M3(codes[i]) * scales[i / w.coding.group];
}

bool IsInteger(const WeightView& w) {
  return w.coding.encoding == Encoding::kInt4 || w.coding.encoding == Encoding::kInt8;
}

const void* Advance(const void* memory, size_t bytes) {
  return memory == nullptr ? nullptr : static_cast<const std::byte*>(memory) + bytes;
}

}  // namespace

bool CanBeginAt(const WeightView& w, uint32_t row) {
  if (w.plain()) return true;
  if (IsInteger(w)) return row % kPanelOutputs == 0;
  return row % w.coding.block_rows == 0 || w.coding.block_rows >= w.rows;
}

WeightView RowRange(const WeightView& w, uint32_t first, uint32_t rows) {
  CHECK_LE(first + rows, w.rows);
  CHECK(CanBeginAt(w, first));
  WeightView range = w;
  range.rows = rows;
  if (w.plain()) {
    range.data = Advance(w.data, size_t{first} * w.cols * SizeOf(w.dtype));
  } else if (IsInteger(w)) {
    const size_t words =
        size_t{CeilDivide(w.cols, kUnitInputs)} * WordsOfUnit(w.coding.encoding) * first;
    const size_t scales = size_t{Groups(w)} * first;
    range.data = Advance(w.data, words * sizeof(uint32_t));
    range.coding.scales = Advance(w.coding.scales, scales * SizeOf(w.dtype));
    range.coding.zeros = static_cast<const uint8_t*>(Advance(w.coding.zeros, scales));
  } else {
    const size_t scales = size_t{first / w.coding.block_rows} * Groups(w);
    range.data = Advance(w.data, size_t{first} * w.cols);
    range.coding.scales = Advance(w.coding.scales, scales * sizeof(float));
  }
  return range;
}

size_t WeightBytes(const WeightView& w) {
  const size_t values = size_t{w.rows} * w.cols;
  switch (w.coding.encoding) {
    case Encoding::kPlain:
      return values * SizeOf(w.dtype);
    case Encoding::kFp8:
      return values + sizeof(float) * CeilDivide(w.rows, w.coding.block_rows) * Groups(w);
    case Encoding::kInt4:
    case Encoding::kInt8:
      break;
  }
  const size_t outputs = size_t{CeilDivide(w.rows, kPanelOutputs)} * kPanelOutputs;
  const size_t units = CeilDivide(w.cols, kUnitInputs);
  return outputs * (units * WordsOfUnit(w.coding.encoding) * sizeof(uint32_t) +
                    Groups(w) * (SizeOf(w.dtype) + (w.coding.zeros != nullptr ? 1 : 0)));
}

void DecodeRow(const WeightView& w, uint32_t row, float* out) {
  switch (w.coding.encoding) {
    case Encoding::kPlain:
      for (uint32_t i = 0; i < w.cols; ++i) {
        out[i] = LoadValue(w.data, size_t{row} * w.cols + i, w.dtype);
      }
      return;
    case Encoding::kFp8:
      return DecodeFp8(w, row, out);
    case Encoding::kInt4:
    case Encoding::kInt8:
      return DecodeIntegers(w, row, out);
  }
}

}  // namespace sparsekv
