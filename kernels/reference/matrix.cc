#include <cmath>
#include <vector>

#include "base/check.h"
#include "kernels/half.h"
#include "kernels/reference/operations.h"

namespace sparsekv::reference {

void Embed(const EmbedArgs& args) {
  const size_t hidden = args.table.cols;
  for (size_t t = 0; t < args.ids.size(); ++t) {
    CHECK_LT(args.ids[t], args.table.rows);
    for (size_t i = 0; i < hidden; ++i) {
      args.out[t * hidden + i] =
          LoadValue(args.table.data, args.ids[t] * hidden + i, args.table.dtype);
    }
  }
}

void RmsNorm(const RmsNormArgs& args) {
  const size_t hidden = args.weight.cols;
  for (size_t t = 0; t < args.tokens; ++t) {
    const float* x = args.x + t * hidden;
    double squares = 0;
    for (size_t i = 0; i < hidden; ++i) squares += double{x[i]} * x[i];
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(hidden) + args.epsilon);
    for (size_t i = 0; i < hidden; ++i) {
      const double weight = LoadValue(args.weight.data, i, args.weight.dtype);
      args.out[t * hidden + i] = static_cast<float>(x[i] * scale * weight);
    }
  }
}

void Linear(const LinearArgs& args) {
  const size_t inputs = args.weight.cols;
  const size_t outputs = args.weight.rows;
  std::vector<float> row(inputs);
  for (size_t o = 0; o < outputs; ++o) {
    DecodeRow(args.weight, static_cast<uint32_t>(o), row.data());
    for (size_t t = 0; t < args.tokens; ++t) {
      double sum = 0;
      for (size_t i = 0; i < inputs; ++i) sum += args.x[t * inputs + i] * double{row[i]};
      float& y = args.y[t * outputs + o];
      y = args.accumulate ? y + static_cast<float>(sum) : static_cast<float>(sum);
    }
  }
}

void SwiGlu(const SwiGluArgs& args) {
  for (size_t i = 0; i < size_t{args.tokens} * args.width; ++i) {
    const double z = args.gate[i];
    args.gate[i] = static_cast<float>(z / (1.0 + std::exp(-z)) * args.up[i]);
  }
}

void Rope(const RopeArgs& args) {
  const size_t half = args.head_dim / 2;
  CHECK_EQ(args.inverse_frequency.size(), half);
  for (size_t t = 0; t < args.positions.size(); ++t) {
    for (size_t h = 0; h < args.heads; ++h) {
      float* x = args.x + (t * args.heads + h) * args.head_dim;
      for (size_t c = 0; c < half; ++c) {
        const float angle = static_cast<float>(args.positions[t]) * args.inverse_frequency[c];
        const double cosine = std::cos(double{angle});
        const double sine = std::sin(double{angle});
        const double a = x[c];
        const double b = x[c + half];
        x[c] = static_cast<float>(a * cosine - b * sine);
        x[c + half] = static_cast<float>(b * cosine + a * sine);
      }
    }
  }
}

}  // namespace sparsekv::reference
