#include "gpu_worker/checkpoint/code_layout.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_join.h"
#include "base/concat.h"

namespace sparsekv {
namespace {

using Method = QuantizationConfig::Method;

const std::vector<std::string_view> kScaleTypes = {"F16", "BF16", "F32"};

uint32_t Word(const std::byte* words, size_t index) {  // at any address
  uint32_t word;
  std::memcpy(&word, words + index * sizeof(word), sizeof(word));
  return word;
}

// Where the scales of a group are side by side: [groups][outputs].
class GroupedLayout : public CodeLayout {
 public:
  size_t ScaleIndex(uint32_t output, uint32_t group) const override {
    return size_t{group} * shape_.rows + output;
  }
};

// qweight [inputs / 8][outputs]: a word is 8 (or 4) inputs of an output, the first in the lowest
// bits. qzeros [groups][outputs / 8], the same way. g_idx names each input's group.
class GptqLayout final : public GroupedLayout {
 public:
  absl::Status Open(const QuantizationConfig& config, const std::string& base,
                    const TensorLookup& lookup) {
    const uint64_t in = shape_.cols, out = shape_.rows, words = per_word();
    auto weight = ExpectTensor(lookup, base + ".qweight", {"I32"}, {in / words, out});
    if (!weight.ok()) return weight.status();
    auto zeros = ExpectTensor(lookup, base + ".qzeros", {"I32"}, {groups(), out / words});
    if (!zeros.ok()) return zeros.status();
    weight_ = (*weight)->data;
    zeros_ = (*zeros)->data;
    // Stored less one, with the borrow going through the word, which adding to the word undoes.
    if (config.zeros_less_one) add_ = bits() == 4 ? 0x11111111u : 0x01010101u;
    if (!config.ordered && lookup(base + ".g_idx").entry == nullptr) return absl::OkStatus();
    return ReadOrder(base, lookup);
  }

  void Codes(uint32_t first, uint8_t* codes) const override {
    const uint32_t outputs = std::min(kPanelOutputs, shape_.rows - first);
    for (uint32_t j = 0; j < shape_.cols; ++j, codes += kPanelOutputs) {
      const uint32_t input = Input(j), shift = input % per_word() * bits();
      const size_t row = size_t{input / per_word()} * shape_.rows + first;
      for (uint32_t o = 0; o < outputs; ++o) {
        codes[o] = static_cast<uint8_t>(Word(weight_, row + o) >> shift & mask());
      }
    }
  }
  uint8_t Zero(uint32_t output, uint32_t group) const override {
    const size_t word = size_t{group} * (shape_.rows / per_word()) + output / per_word();
    return static_cast<uint8_t>((Word(zeros_, word) + add_) >> output % per_word() * bits() &
                                mask());
  }

 private:
  // Inputs by group, in their own order within one.
  absl::Status ReadOrder(const std::string& base, const TensorLookup& lookup) {
    const std::string name = base + ".g_idx";
    auto index = ExpectTensor(lookup, name, {"I32"}, {shape_.cols});
    if (!index.ok()) return index.status();
    const std::string where = Concat(lookup(name).file, ": tensor \"", name, "\" ");
    std::vector<uint32_t> next(groups());
    for (uint32_t g = 0; g < groups(); ++g) next[g] = g * shape_.group;
    std::vector<uint32_t> order(shape_.cols);
    bool moved = false;
    for (uint32_t i = 0; i < shape_.cols; ++i) {
      const uint32_t group = Word((*index)->data, i);
      if (group >= groups()) {
        return absl::InvalidArgumentError(Concat(where, "names group ", static_cast<int32_t>(group),
                                                 " of input ", i, ", there are ", groups()));
      }
      if (next[group] == (group + 1) * shape_.group) {
        return absl::InvalidArgumentError(
            Concat(where, "gives group ", group, " more than ", shape_.group, " inputs"));
      }
      moved = moved || next[group] != i;
      order[next[group]++] = i;
    }
    if (moved) order_ = std::move(order);
    return absl::OkStatus();
  }

  const std::byte *weight_ = nullptr, *zeros_ = nullptr;
  uint32_t add_ = 0;
};

// qweight [inputs][outputs / 8], qzeros [groups][outputs / 8]: a word is 8 outputs, in its bits in
// the order 0, 2, 4, 6, 1, 3, 5, 7.
class AwqLayout final : public GroupedLayout {
 public:
  absl::Status Open(const std::string& base, const TensorLookup& lookup) {
    const uint64_t words = shape_.rows / 8;
    auto weight = ExpectTensor(lookup, base + ".qweight", {"I32"}, {shape_.cols, words});
    if (!weight.ok()) return weight.status();
    auto zeros = ExpectTensor(lookup, base + ".qzeros", {"I32"}, {groups(), words});
    if (!zeros.ok()) return zeros.status();
    weight_ = (*weight)->data;
    zeros_ = (*zeros)->data;
    return absl::OkStatus();
  }

  void Codes(uint32_t first, uint8_t* codes) const override {
    const uint32_t outputs = std::min(kPanelOutputs, shape_.rows - first);
    for (uint32_t i = 0; i < shape_.cols; ++i, codes += kPanelOutputs) {
      for (uint32_t o = 0; o < outputs; ++o) codes[o] = At(weight_, i, first + o);
    }
  }
  uint8_t Zero(uint32_t output, uint32_t group) const override { return At(zeros_, group, output); }

 private:
  uint8_t At(const std::byte* words, uint32_t row, uint32_t output) const {
    constexpr uint8_t kShift[] = {0, 16, 4, 20, 8, 24, 12, 28};
    const size_t word = size_t{row} * (shape_.rows / 8) + output / 8;
    return static_cast<uint8_t>(Word(words, word) >> kShift[output % 8] & 0xF);
  }

  const std::byte *weight_ = nullptr, *zeros_ = nullptr;
};

// compressed-tensors, symmetric: weight_packed [outputs][inputs / 8], the codes less their zero
// point being signed; or weight [outputs][inputs] of signed bytes. weight_scale [outputs][groups],
// or one for the matrix.
class CompressedLayout final : public CodeLayout {
 public:
  absl::Status Open(const QuantizationConfig& config, const std::string& base,
                    const TensorLookup& lookup) {
    const uint64_t in = shape_.cols, out = shape_.rows;
    packed_ = config.packed;
    row_bytes_ = packed_ ? CeilDivide(shape_.cols, per_word()) * sizeof(uint32_t) : in;
    auto weight = packed_ ? ExpectTensor(lookup, base + ".weight_packed", {"I32"},
                                         {out, row_bytes_ / sizeof(uint32_t)})
                          : ExpectTensor(lookup, base + ".weight", {"I8"}, {out, in});
    if (!weight.ok()) return weight.status();
    weight_ = (*weight)->data;
    for (const char* part : {".weight_zero_point", ".weight_g_idx"}) {
      if (const FoundTensor found = lookup(base + part); found.entry != nullptr) {
        return absl::InvalidArgumentError(
            Concat(found.file, ": tensor \"", base, part, "\" is not supported"));
      }
    }
    return absl::OkStatus();
  }

  void set_one_scale(bool one) { one_scale_ = one; }
  size_t ScaleIndex(uint32_t output, uint32_t group) const override {
    return one_scale_ ? 0 : size_t{output} * groups() + group;
  }
  void Codes(uint32_t first, uint8_t* codes) const override {
    const uint32_t outputs = std::min(kPanelOutputs, shape_.rows - first);
    for (uint32_t i = 0; i < shape_.cols; ++i, codes += kPanelOutputs) {
      for (uint32_t o = 0; o < outputs; ++o) {
        const std::byte* row = weight_ + (first + o) * row_bytes_;
        codes[o] = static_cast<uint8_t>(
            packed_ ? Word(row, i / per_word()) >> i % per_word() * bits() & mask()
                    : static_cast<uint32_t>(row[i]) ^ 0x80u);
      }
    }
  }
  uint8_t Zero(uint32_t, uint32_t) const override {
    return static_cast<uint8_t>(1 << (bits() - 1));
  }

 private:
  bool packed_ = false, one_scale_ = false;
  size_t row_bytes_ = 0;
  const std::byte* weight_ = nullptr;
};

// The shape, or why the config's groups do not fit the matrix.
absl::StatusOr<PackedMatrix::Shape> ShapeOf(const QuantizationConfig& config,
                                            const std::string& base, uint32_t rows, uint32_t cols) {
  PackedMatrix::Shape shape = {.encoding = config.bits == 4 ? Encoding::kInt4 : Encoding::kInt8,
                               .rows = rows,
                               .cols = cols,
                               .group = config.group == 0 ? cols : config.group};
  const auto refuse = [&](const std::string& what) {
    return absl::InvalidArgumentError(Concat(config.file, ": quantization_config.", what,
                                             " of module \"", base, "\" [", rows, ", ", cols, "]"));
  };
  if (cols % shape.group != 0) {
    return refuse(Concat("group_size ", shape.group, " does not divide the inputs"));
  }
  const uint32_t words = 32 / config.bits;
  const bool awq = config.method == Method::kAwq, gptq = config.method == Method::kGptq;
  if ((awq || gptq) && (rows % words != 0 || (gptq && cols % words != 0))) {
    return refuse(Concat("bits ", config.bits, ": words of ", words, " do not divide the shape"));
  }
  return shape;
}

}  // namespace

absl::StatusOr<const SafetensorsEntry*> ExpectTensor(const TensorLookup& lookup,
                                                     const std::string& name,
                                                     const std::vector<std::string_view>& dtypes,
                                                     const std::vector<uint64_t>& shape) {
  const FoundTensor found = lookup(name);
  const std::string where = Concat(found.file, ": tensor \"", name, "\" ");
  if (found.entry == nullptr) return absl::InvalidArgumentError(where + "is missing");
  if (std::ranges::find(dtypes, found.entry->dtype_name) == dtypes.end()) {
    return absl::InvalidArgumentError(
        Concat(where, "has dtype ", found.entry->dtype_name, ", expected ",
               absl::StrJoin(dtypes, " or ", [](std::string* out, std::string_view dtype) {
                 out->append(dtype.data(), dtype.size());
               })));
  }
  if (found.entry->shape != shape) {
    return absl::InvalidArgumentError(Concat(where, "has shape [",
                                             absl::StrJoin(found.entry->shape, ", "),
                                             "], expected [", absl::StrJoin(shape, ", "), "]"));
  }
  return found.entry;
}

absl::StatusOr<std::unique_ptr<CodeLayout>> CodeLayout::Open(const QuantizationConfig& config,
                                                             const std::string& base, uint32_t rows,
                                                             uint32_t cols,
                                                             const TensorLookup& lookup) {
  auto shape = ShapeOf(config, base, rows, cols);
  if (!shape.ok()) return shape.status();
  std::unique_ptr<CodeLayout> layout;
  std::string scale_name = base + ".scales";
  const uint64_t groups = CeilDivide(cols, shape->group);
  std::vector<uint64_t> scale_shape = {groups, rows};
  absl::Status opened;
  if (config.method == Method::kGptq) {
    auto gptq = std::make_unique<GptqLayout>();
    gptq->shape_ = *shape;
    opened = gptq->Open(config, base, lookup);
    layout = std::move(gptq);
  } else if (config.method == Method::kAwq) {
    auto awq = std::make_unique<AwqLayout>();
    awq->shape_ = *shape;
    opened = awq->Open(base, lookup);
    layout = std::move(awq);
  } else {
    auto compressed = std::make_unique<CompressedLayout>();
    compressed->shape_ = *shape;
    opened = compressed->Open(config, base, lookup);
    scale_name = base + ".weight_scale";
    scale_shape = {rows, groups};
    const SafetensorsEntry* scale = lookup(scale_name).entry;
    if (scale != nullptr && scale->shape.size() < 2) {
      scale_shape.assign(scale->shape.size(), 1);
      compressed->set_one_scale(true);
    }
    layout = std::move(compressed);
  }
  if (!opened.ok()) return opened;
  auto scales = ExpectTensor(lookup, scale_name, kScaleTypes, scale_shape);
  if (!scales.ok()) return scales.status();
  layout->scales_ = (*scales)->data;
  layout->shape_.scale_type = *(*scales)->dtype;
  return layout;
}

}  // namespace sparsekv
