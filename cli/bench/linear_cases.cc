#include <algorithm>

#include "cli/bench/kernel_bench.h"
#include "cli/bench/sgemm.h"

// Matrix products of a 1B model's shapes (hidden 2,048, intermediate 8,192, 8 KV heads of 64,
// vocabulary of 128,256), with bf16 weights and with codes (groups of 128 inputs; float8: a scale
// per row). Decode is compared with reading the weights, prefill with OpenBLAS on the same product
// in float32.
namespace sparsekv {
namespace {

struct Shape {
  const char* of;
  uint32_t outputs;
  uint32_t inputs;

  // The matrix at `memory`, its scales behind it. What lies there is random, and may be anything.
  WeightView At(const std::byte* memory, Encoding encoding) const {
    WeightView view = {memory, DType::kBF16, outputs, inputs};
    if (encoding == Encoding::kPlain) return view;
    const bool fp8 = encoding == Encoding::kFp8;
    view.coding = {.encoding = encoding, .group = fp8 ? inputs : 128, .block_rows = 1, .zero = 8};
    const size_t codes = size_t{outputs} * inputs / (encoding == Encoding::kInt4 ? 2 : 1);
    view.coding.scales = memory + codes;
    return view;
  }
  size_t bytes(Encoding encoding) const { return WeightBytes(At(nullptr, encoding)); }
};

struct Format {
  Encoding encoding;
  const char* dtype;
  const char* suffix;  // of the cases' names
};
constexpr Format kFormats[] = {{Encoding::kPlain, "bf16", ""},
                               {Encoding::kInt8, "int8", "_int8"},
                               {Encoding::kInt4, "int4", "_int4"},
                               {Encoding::kFp8, "fp8", "_fp8"}};

constexpr Shape kQuery = {"q, o", 2048, 2048};
constexpr Shape kKey = {"k, v", 512, 2048};
constexpr Shape kUp = {"gate, up", 8192, 2048};
constexpr Shape kDown = {"down", 2048, 8192};
constexpr Shape kHead = {"head", 128256, 2048};
constexpr uint32_t kLayers = 16;
constexpr uint32_t kMaxTokens = 256;

static_assert(KernelBench::kMemory >= size_t{2} * 128256 * 2048);

// Activations, and weights that lie one behind the other in the memory.
class Products {
 public:
  explicit Products(KernelBench& bench)
      : bench_(bench),
        x_(NormalValues(size_t{kMaxTokens} * 8192, 6)),
        y_(128256 + kMaxTokens * 8192) {}

  void Multiply(const Shape& shape, Encoding encoding, uint32_t tokens) {
    const size_t bytes = (shape.bytes(encoding) + 63) / 64 * 64;
    if (at_ + bytes > KernelBench::kMemory) at_ = 0;
    const WeightView weight = shape.At(bench_.memory() + at_, encoding);
    at_ += bytes;
    bench_.backend().Linear({.x = x_.data(), .tokens = tokens, .weight = weight, .y = y_.data()});
  }

  // The same with OpenBLAS; returns its seconds. The weights are float32 and need not differ from
  // call to call: what such a product takes is arithmetic.
  double MultiplyByBlas(const Sgemm& sgemm, const Shape& shape, uint32_t tokens) {
    wide_.resize(std::max(wide_.size(), size_t{shape.outputs} * shape.inputs), 0.5f);
    const auto start = std::chrono::steady_clock::now();
    sgemm.Multiply(x_.data(), tokens, wide_.data(), shape.outputs, shape.inputs, y_.data());
    return SecondsSince(start);
  }

 private:
  KernelBench& bench_;
  std::vector<float> x_;
  std::vector<float> y_;
  std::vector<float> wide_;
  size_t at_ = 0;
};

nlohmann::ordered_json Params(const Shape& shape, const Format& format, uint32_t tokens) {
  return {{"weight", shape.of},
          {"outputs", shape.outputs},
          {"inputs", shape.inputs},
          {"tokens", tokens},
          {"dtype", format.dtype}};
}

double Flops(const Shape& shape, uint32_t tokens) {
  return 2.0 * shape.outputs * shape.inputs * tokens;
}

using Ceilings = KernelBench::Ceilings;

void AddDecode(const std::shared_ptr<Products>& products, const Format& format,
               std::vector<KernelCase>* cases) {
  const std::string name = std::string("linear_decode") + format.suffix;
  const Encoding encoding = format.encoding;
  const auto add = [&](const Shape& shape, uint32_t tokens) {
    const auto bytes = static_cast<double>(shape.bytes(encoding));
    cases->push_back({.item = {name, Params(shape, format, tokens), bytes, Flops(shape, tokens)},
                      .run = [=](uint32_t) { products->Multiply(shape, encoding, tokens); },
                      .ideal = [=](const Ceilings& ceilings) { return bytes / ceilings.stream; }});
  };
  for (const Shape& shape : {kQuery, kKey, kUp, kDown, kHead}) add(shape, 1);
  add(kUp, 4);
  // All of one token's products, in order.
  const std::vector<Shape> layer = {kQuery, kKey, kKey, kQuery, kUp, kUp, kDown};
  auto bytes = static_cast<double>(kHead.bytes(encoding));
  double flops = Flops(kHead, 1);
  for (const Shape& shape : layer) {
    bytes += kLayers * static_cast<double>(shape.bytes(encoding));
    flops += kLayers * Flops(shape, 1);
  }
  cases->push_back({.item = {name,
                             {{"weight", "whole model"}, {"tokens", 1}, {"dtype", format.dtype}},
                             bytes,
                             flops},
                    .run =
                        [=](uint32_t) {
                          for (uint32_t i = 0; i < kLayers; ++i) {
                            for (const Shape& shape : layer) products->Multiply(shape, encoding, 1);
                          }
                          products->Multiply(kHead, encoding, 1);
                        },
                    .ideal = [=](const Ceilings& ceilings) { return bytes / ceilings.stream; }});
}

void AddPrefill(const std::shared_ptr<Products>& products, const Format& format, const Sgemm& sgemm,
                std::vector<KernelCase>* cases) {
  const Encoding encoding = format.encoding;
  for (const Shape& shape : {kQuery, kKey, kUp, kDown}) {
    auto params = Params(shape, format, kMaxTokens);
    params["ceiling"] = "OpenBLAS sgemm";
    cases->push_back(
        {.item = {std::string("linear_prefill") + format.suffix, params,
                  static_cast<double>(shape.bytes(encoding)), Flops(shape, kMaxTokens)},
         .run = [=](uint32_t) { products->Multiply(shape, encoding, kMaxTokens); },
         .ideal =
             [=](const Ceilings&) { return products->MultiplyByBlas(sgemm, shape, kMaxTokens); }});
  }
}

}  // namespace

absl::Status AddLinearCases(KernelBench& bench, const std::string& filter,
                            std::vector<KernelCase>* cases) {
  const auto wanted = [&](const char* name, const Format& format) {
    return (std::string(name) + format.suffix).find(filter) != std::string::npos;
  };
  const auto products = std::make_shared<Products>(bench);
  for (const Format& format : kFormats) {
    if (wanted("linear_decode", format)) AddDecode(products, format, cases);
    if (!wanted("linear_prefill", format)) continue;
    const auto sgemm = Sgemm::Open(bench.pool().threads());
    if (!sgemm.ok()) return sgemm.status();
    AddPrefill(products, format, *sgemm, cases);
  }
  return absl::OkStatus();
}

}  // namespace sparsekv
