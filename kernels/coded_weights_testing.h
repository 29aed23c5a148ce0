#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/half.h"
#include "kernels/packed_matrix.h"
#include "kernels/test_cases.h"

namespace sparsekv::testing {

// A random matrix of codes with its own memory, and the floats that it means, computed from what
// was drawn and not from what was written.
struct CodedWeights {
  struct Shape {
    Encoding encoding = Encoding::kInt4;
    uint32_t rows = 16;
    uint32_t cols = 64;
    uint32_t group = 64;
    uint32_t block_rows = 1;  // kFp8
    DType scale_type = DType::kF16;
    bool zeros = true;   // a zero point per group; else one for all
    bool order = false;  // act-order: inputs in another order
  };

  CodedWeights(Random& random, const Shape& shape) : values(size_t{shape.rows} * shape.cols) {
    if (shape.encoding == Encoding::kFp8) {
      MakeFp8(random, shape);
    } else {
      MakeIntegers(random, shape);
    }
  }
  CodedWeights(const CodedWeights&) = delete;

  std::vector<float> values;  // [rows, cols]
  WeightView view;

 private:
  void MakeIntegers(Random& random, const Shape& s) {
    const bool four = s.encoding == Encoding::kInt4;
    const uint32_t most = four ? 15 : 255;
    const float size = 1 / std::sqrt(static_cast<float>(s.cols)) / (four ? 4.0f : 64.0f);
    std::vector<uint32_t> order;
    if (s.order) {
      order.resize(s.cols);
      std::iota(order.begin(), order.end(), 0u);
      random.Shuffle(order);
    }
    const auto zero = static_cast<uint8_t>((most + 1) / 2);
    packed_ =
        PackedMatrix({s.encoding, s.rows, s.cols, s.group, s.scale_type}, order, s.zeros, zero);
    std::vector<uint8_t> codes(size_t{s.cols} * kPanelOutputs);
    for (uint32_t panel = 0; panel < packed_.panels(); ++panel) {
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random.Between(0, most));
      packed_.SetCodes(panel, codes.data());
      const uint32_t end = std::min((panel + 1) * kPanelOutputs, s.rows);
      for (uint32_t o = panel * kPanelOutputs; o < end; ++o) {
        for (uint32_t j = 0, z = zero, g = 0; j < s.cols; ++j) {
          if (j % s.group == 0) {
            g = j / s.group;
            if (s.zeros) packed_.SetZero(o, g, static_cast<uint8_t>(z = random.Between(0, most)));
            StoreValue(packed_.Scale(o, g), 0, s.scale_type, random.Normal(size));
          }
          const int code = codes[j * kPanelOutputs + o % kPanelOutputs];
          values[size_t{o} * s.cols + (s.order ? order[j] : j)] =
              LoadValue(packed_.Scale(o, g), 0, s.scale_type) *
              static_cast<float>(code - static_cast<int>(z));
        }
      }
    }
    view = packed_.view();
  }

  void MakeFp8(Random& random, const Shape& s) {
    const uint32_t groups = CeilDivide(s.cols, s.group);
    codes_ = Shared<uint8_t>(values.size());
    scales_.resize(size_t{CeilDivide(s.rows, s.block_rows)} * groups);
    for (float& scale : scales_) {
      scale = 0.01f * (0.1f + std::fabs(random.Normal())) / std::sqrt(static_cast<float>(s.cols));
    }
    for (size_t at = 0; at < codes_.size(); ++at) {
      do {
        codes_[at] = static_cast<uint8_t>(random.Between(0, 255));
      } while ((codes_[at] & 0x7F) == 0x7F);
      const size_t o = at / s.cols, i = at % s.cols;
      // The format's definition: sign, 2^(exponent - 7), 1.mantissa or 0.mantissa.
      const int exponent = codes_[at] >> 3 & 15, mantissa = codes_[at] & 7;
      const float magnitude = exponent == 0
                                  ? std::ldexp(static_cast<float>(mantissa), -9)
                                  : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
      values[at] = (codes_[at] & 0x80 ? -magnitude : magnitude) *
                   scales_[o / s.block_rows * groups + i / s.group];
    }
    view = {.data = codes_.data(),
            .rows = s.rows,
            .cols = s.cols,
            .coding = {.encoding = Encoding::kFp8,
                       .group = s.group,
                       .block_rows = s.block_rows,
                       .scales = scales_.data()}};
  }

  PackedMatrix packed_;
  Shared<uint8_t> codes_;
  std::vector<float> scales_;
};

}  // namespace sparsekv::testing
