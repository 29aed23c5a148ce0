#include "gpu_worker/checkpoint/quantized_weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>

#include "base/check.h"
#include "base/concat.h"
#include "kernels/half.h"

namespace sparsekv {
namespace {

using Method = QuantizationConfig::Method;

constexpr std::string_view kSuffix = ".weight";
constexpr float kMaxFp8Scale = 1e30f;  // times 448 and what products shift it by, it is finite

// The module of "X.weight": "X".
std::string Base(const std::string& tensor) {
  CHECK(tensor.ends_with(kSuffix));
  return tensor.substr(0, tensor.size() - kSuffix.size());
}

const std::vector<std::string_view>& PartNames(Method method) {
  static const std::vector<std::string_view> none,
      groups = {".qweight", ".qzeros", ".scales", ".g_idx", ".bias"},
      fp8 = {".weight", ".weight_scale_inv", ".weight_scale", ".input_scale", ".bias"},
      compressed = {".weight_packed", ".weight", ".weight_scale", ".weight_shape", ".bias"};
  if (method == Method::kNone) return none;
  if (method == Method::kFp8) return fp8;
  return method == Method::kCompressed ? compressed : groups;
}

bool HoldsNan(const std::byte* codes, size_t count) {
  uint8_t nan = 0;
  for (size_t i = 0; i < count; ++i) {
    nan |= static_cast<uint8_t>((static_cast<uint8_t>(codes[i]) & 0x7F) == 0x7F);
  }
  return nan != 0;
}

}  // namespace

struct QuantizedWeights::Bound {
  std::string base;
  WeightView* view = nullptr;
  std::unique_ptr<CodeLayout> layout;  // integers, until they are packed
  PackedMatrix packed;                 // integers, afterwards
  std::vector<float> scales;           // float8
  std::string where;                   // the file and the tensor of codes, for errors
};

QuantizedWeights::QuantizedWeights(QuantizationConfig config, TensorLookup lookup)
    : config_(std::move(config)), lookup_(std::move(lookup)) {}
QuantizedWeights::~QuantizedWeights() = default;

bool QuantizedWeights::Holds(const std::string& tensor) const {
  if (!config_.any() || !tensor.ends_with(kSuffix) || tensor == "model.embed_tokens.weight") {
    return false;
  }
  const std::string base = Base(tensor);
  const SafetensorsEntry* plain = lookup_(tensor).entry;
  switch (config_.method) {
    case Method::kNone:
      return false;
    case Method::kGptq:
    case Method::kAwq:
      return lookup_(base + ".qweight").entry != nullptr ||
             (plain == nullptr && lookup_(base + ".scales").entry != nullptr);
    case Method::kFp8:
      return plain != nullptr && plain->dtype_name == "F8_E4M3";
    case Method::kCompressed:
      return config_.packed ? lookup_(base + ".weight_packed").entry != nullptr
                            : plain != nullptr && !plain->dtype;
  }
  return false;
}

std::vector<std::string> QuantizedWeights::Parts(const std::string& tensor) const {
  std::vector<std::string> parts;
  for (std::string_view part : PartNames(config_.method)) {
    std::string name = Concat(Base(tensor), part);
    if (lookup_(name).entry != nullptr) parts.push_back(std::move(name));
  }
  return parts;
}

absl::Status QuantizedWeights::CheckBias(const std::string& base) const {
  const FoundTensor bias = lookup_(base + ".bias");
  if (bias.entry == nullptr) return absl::OkStatus();
  for (uint64_t i = 0; i < bias.entry->bytes; ++i) {
    if (bias.entry->data[i] != std::byte{0}) {
      return absl::InvalidArgumentError(
          Concat(bias.file, ": tensor \"", base, ".bias\" is not part of the model and not zero"));
    }
  }
  return absl::OkStatus();
}

absl::Status QuantizedWeights::Bind(const std::string& tensor, uint32_t rows, uint32_t cols,
                                    bool has_bias, WeightView* view) {
  const std::string base = Base(tensor);
  const FoundTensor plain = lookup_(tensor);
  const bool beside = config_.method == Method::kGptq || config_.method == Method::kAwq ||
                      (config_.method == Method::kCompressed && config_.packed);
  if (beside && plain.entry != nullptr) {
    return absl::InvalidArgumentError(
        Concat(plain.file, ": tensor \"", tensor, "\" is there twice: plain and as codes"));
  }
  if (!has_bias) {
    if (absl::Status status = CheckBias(base); !status.ok()) return status;
  }
  auto bound = std::make_unique<Bound>();
  bound->base = base;
  bound->view = view;
  *view = {.rows = rows, .cols = cols};
  const bool fp8 = config_.bits == 0;
  absl::Status status = fp8 ? BindFp8(base, *bound) : BindIntegers(base, *bound);
  if (!status.ok()) return status;
  bound_.push_back(std::move(bound));
  return absl::OkStatus();
}

absl::Status QuantizedWeights::BindIntegers(const std::string& base, Bound& bound) {
  WeightView& view = *bound.view;
  auto layout = CodeLayout::Open(config_, base, view.rows, view.cols, lookup_);
  if (!layout.ok()) return layout.status();
  bound.layout = *std::move(layout);
  bound.where = Concat(lookup_(Parts(base + ".weight").front()).file, ": module \"", base, "\" ");
  const PackedMatrix::Shape& shape = bound.layout->shape();
  view.dtype = shape.scale_type;
  view.coding = {.encoding = shape.encoding, .group = shape.group};
  return absl::OkStatus();
}

absl::Status QuantizedWeights::BindFp8(const std::string& base, Bound& bound) {
  WeightView& view = *bound.view;
  auto codes = ExpectTensor(lookup_, base + ".weight", {"F8_E4M3"}, {view.rows, view.cols});
  if (!codes.ok()) return codes.status();
  const char* part = ".weight_scale_inv";
  if (lookup_(base + part).entry == nullptr) part = ".weight_scale";
  const FoundTensor scale = lookup_(base + part);
  const uint32_t block_rows = config_.block_rows, block_cols = config_.block_cols;
  std::vector<uint64_t> shape;
  uint32_t rows = view.rows, cols = view.cols;  // that share a scale
  if (block_rows > 0) {
    rows = block_rows, cols = block_cols;
    shape = {CeilDivide(view.rows, rows), CeilDivide(view.cols, cols)};
  } else if (scale.entry != nullptr && !scale.entry->shape.empty() &&
             scale.entry->shape[0] == view.rows && view.rows > 1) {
    rows = 1;
    shape = {view.rows};
    if (scale.entry->shape.size() == 2) shape.push_back(1);
  } else if (scale.entry != nullptr) {
    shape.assign(std::min<size_t>(scale.entry->shape.size(), 2), 1);
  }
  auto scales = ExpectTensor(lookup_, base + part, {"F32", "BF16", "F16"}, shape);
  if (!scales.ok()) return scales.status();
  bound.where = Concat(scale.file, ": module \"", base, "\" ");
  bound.scales.resize(size_t{CeilDivide(view.rows, rows)} * CeilDivide(view.cols, cols));
  for (size_t i = 0; i < bound.scales.size(); ++i) {
    bound.scales[i] = LoadValue((*scales)->data, i, *(*scales)->dtype);
    if (!(std::fabs(bound.scales[i]) <= kMaxFp8Scale)) {
      return absl::InvalidArgumentError(
          Concat(scale.file, ": tensor \"", base, part, "\" holds the scale ", bound.scales[i],
                 ", not supported (supported: up to ", kMaxFp8Scale, ")"));
    }
  }
  view.data = (*codes)->data;
  view.coding = {
      .encoding = Encoding::kFp8, .group = cols, .block_rows = rows, .scales = bound.scales.data()};
  return absl::OkStatus();
}

absl::Status QuantizedWeights::PackOne(Bound& bound) {
  WeightView& view = *bound.view;
  if (!bound.layout) {
    if (!HoldsNan(static_cast<const std::byte*>(view.data), size_t{view.rows} * view.cols)) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(bound.where + "holds a weight that is NaN");
  }
  const CodeLayout& layout = *bound.layout;
  const PackedMatrix::Shape& shape = layout.shape();
  const uint32_t groups = CeilDivide(shape.cols, shape.group);
  const uint8_t zero = layout.Zero(0, 0);
  bool same = true;
  for (uint32_t g = 0; g < groups && same; ++g) {
    for (uint32_t o = 0; o < shape.rows && same; ++o) same = layout.Zero(o, g) == zero;
  }
  PackedMatrix packed(shape, layout.order(), /*has_zeros=*/!same, zero);
  std::vector<uint8_t> codes(size_t{shape.cols} * kPanelOutputs);
  for (uint32_t panel = 0; panel < packed.panels(); ++panel) {
    layout.Codes(panel * kPanelOutputs, codes.data());
    packed.SetCodes(panel, codes.data());
  }
  for (uint32_t g = 0; g < groups; ++g) {
    for (uint32_t o = 0; o < shape.rows; ++o) {
      if (!same) packed.SetZero(o, g, layout.Zero(o, g));
      std::memcpy(packed.Scale(o, g), layout.Scale(o, g), SizeOf(shape.scale_type));
      if (!std::isfinite(LoadValue(packed.Scale(o, g), 0, shape.scale_type))) {
        return absl::InvalidArgumentError(bound.where + "holds a scale that is not finite");
      }
    }
  }
  bound.packed = std::move(packed);
  view = bound.packed.view();
  bound.layout.reset();
  return absl::OkStatus();
}

absl::Status QuantizedWeights::Pack() {
  std::atomic<size_t> next{0};
  std::mutex mutex;
  absl::Status first;  // under the mutex: the first error that happened
  const auto work = [&] {
    for (size_t i = next++; i < bound_.size(); i = next++) {
      absl::Status status;
      try {
        status = PackOne(*bound_[i]);
      } catch (const std::bad_alloc&) {
        status = absl::ResourceExhaustedError(bound_[i]->where + "does not fit this memory");
      }
      const std::lock_guard lock(mutex);
      if (first.ok()) first = status;
    }
  };
  const size_t threads =
      std::min<size_t>(std::max(1u, std::thread::hardware_concurrency()), bound_.size());
  std::vector<std::thread> others;
  for (size_t t = 1; t < threads; ++t) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
  return first;
}

size_t QuantizedWeights::packed_bytes() const {
  size_t bytes = 0;
  for (const auto& bound : bound_) {
    if (bound->view->coding.encoding != Encoding::kFp8) bytes += WeightBytes(*bound->view);
  }
  return bytes;
}

}  // namespace sparsekv
