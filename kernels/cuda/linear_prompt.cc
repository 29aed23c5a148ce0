#include <cublasLt.h>

#include <algorithm>
#include <compare>
#include <cstdint>
#include <map>
#include <string>

#include "base/check.h"
#include "kernels/cuda/linear_prompt_pieces.h"
#include "kernels/cuda/operations.h"

// y (+)= x W^T for many tokens. The library may choose another algorithm for another number of
// tokens, and then a token's bits change. So it always multiplies kPieceTokens tokens, the last
// piece filled up with zeros, by one algorithm per shape of the weights, without split sums: every
// result is one sum over the inputs in an order that the shape decides, or, of both halves of x,
// two.
//
// FLOPs: 2 x inputs x outputs per token of a whole piece, twice that for both halves of x. Bytes
// beside the product's own: 4 + 2 per half, input and token to convert x, 8 per output and token
// for the second half, and 8 more (12 added) where a piece is not whole or both halves are added.
namespace sparsekv::cuda {
namespace {

constexpr uint32_t kMostOutputs = 32768;  // of one call: bounds the results that lie in scratch
constexpr uint32_t kWholeValues = 8;      // rows of multiples of this are aligned in every type
constexpr size_t kMostWorkspace = size_t{32} << 20;
constexpr uint32_t kAlign = 16;  // what the library may count on, every operand
constexpr size_t kScratchAlign = 256;

void CheckLibrary(cublasStatus_t status, const char* file, int line, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) [[unlikely]] {
    DeviceFailed(file, line, what, cublasLtGetStatusString(status));
  }
}
#define CUBLASLT_CHECK(call) CheckLibrary((call), __FILE__, __LINE__, #call)

template <typename T>
T RoundUp(T value, T to) {
  return (value + to - 1) / to * to;
}

bool Aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kAlign == 0; }

cudaDataType_t LibraryType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return CUDA_R_32F;
    case DType::kF16:
      return CUDA_R_16F;
    case DType::kBF16:
      return CUDA_R_16BF;
  }
  return CUDA_R_32F;
}

struct Shape {
  uint32_t outputs = 0;
  uint32_t inputs = 0;  // a multiple of kWholeValues
  DType dtype = DType::kF32;

  uint32_t result_stride() const { return RoundUp(outputs, kWholeValues); }
  auto operator<=>(const Shape&) const = default;
};

// In the library's words, where columns come first: results [outputs x tokens] = transposed weights
// [inputs x outputs] . tokens [inputs x tokens].
struct Product {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t weights = nullptr, tokens = nullptr, results = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  size_t workspace = 0;
};

void SetPreference(cublasLtMatmulPreference_t preference,
                   cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
  CUBLASLT_CHECK(
      cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
}

void ChooseAlgorithm(cublasLtHandle_t handle, const Shape& shape, Product& product) {
  cublasLtMatmulPreference_t preference = nullptr;
  CUBLASLT_CHECK(cublasLtMatmulPreferenceCreate(&preference));
  SetPreference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kMostWorkspace);
  SetPreference(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE));
  for (auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    SetPreference(preference, attribute, kAlign);
  }
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, product.operation, product.weights, product.tokens, product.results, product.results,
      preference, 1, &best, &found);
  if (status != CUBLAS_STATUS_SUCCESS || found == 0 || best.state != CUBLAS_STATUS_SUCCESS) {
    const std::string why = "cuBLASLt has no algorithm for weights [" +
                            std::to_string(shape.outputs) + ", " + std::to_string(shape.inputs) +
                            "] in " + std::string(Name(shape.dtype));
    DeviceFailed(__FILE__, __LINE__, "cublasLtMatmulAlgoGetHeuristic", why.c_str());
  }
  CUBLASLT_CHECK(cublasLtMatmulPreferenceDestroy(preference));
  product.algorithm = best.algo;
  product.workspace = best.workspaceSize;
}

Product MakeProduct(cublasLtHandle_t handle, const Shape& shape) {
  Product product;
  const cudaDataType_t type = LibraryType(shape.dtype);
  const cublasComputeType_t compute =
      shape.dtype == DType::kF32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F;
  CUBLASLT_CHECK(cublasLtMatmulDescCreate(&product.operation, compute, CUDA_R_32F));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  CUBLASLT_CHECK(cublasLtMatmulDescSetAttribute(product.operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                                &transposed, sizeof(transposed)));
  CUBLASLT_CHECK(cublasLtMatrixLayoutCreate(&product.weights, type, shape.inputs, shape.outputs,
                                            shape.inputs));
  CUBLASLT_CHECK(
      cublasLtMatrixLayoutCreate(&product.tokens, type, shape.inputs, kPieceTokens, shape.inputs));
  CUBLASLT_CHECK(cublasLtMatrixLayoutCreate(&product.results, CUDA_R_32F, shape.outputs,
                                            kPieceTokens, shape.result_stride()));
  ChooseAlgorithm(handle, shape, product);
  return product;
}

// What one call needs of the scratch, in this order.
struct Slab {
  size_t tokens = 0, weights = 0, results = 0, workspace = 0;  // bytes

  size_t bytes() const { return tokens + weights + results + workspace; }
};

}  // namespace

struct PromptProducts::Library {
  cublasLtHandle_t handle = nullptr;
  std::map<Shape, Product> products;  // entries stay where they are: noted calls point to them

  Library() { CUBLASLT_CHECK(cublasLtCreate(&handle)); }
  ~Library() {  // errors are not looked at: the process may be ending because of one
    for (auto& [shape, product] : products) {
      cublasLtMatrixLayoutDestroy(product.weights);
      cublasLtMatrixLayoutDestroy(product.tokens);
      cublasLtMatrixLayoutDestroy(product.results);
      cublasLtMatmulDescDestroy(product.operation);
    }
    cublasLtDestroy(handle);
  }

  const Product& Find(const Shape& shape) {
    auto found = products.find(shape);
    if (found == products.end()) found = products.emplace(shape, MakeProduct(handle, shape)).first;
    return found->second;
  }

  void Multiply(const Product& product, const void* weights, const void* tokens, float* results,
                bool accumulate, void* workspace, Tape& tape) {
    tape.Call(
        [this, &product, weights, tokens, results, accumulate, workspace](cudaStream_t stream) {
          const float alpha = 1, beta = accumulate ? 1 : 0;
          CUBLASLT_CHECK(cublasLtMatmul(handle, product.operation, &alpha, weights, product.weights,
                                        tokens, product.tokens, &beta, results, product.results,
                                        results, product.results, &product.algorithm, workspace,
                                        product.workspace, stream));
        });
  }
};

PromptProducts::PromptProducts(bool exact) : exact_(exact) {}
PromptProducts::~PromptProducts() = default;

void PromptProducts::Linear(const LinearArgs& args, Tape& tape) {
  Multiply(args, exact_ && args.weight.dtype != DType::kF32, tape);
}

void PromptProducts::Project(const ProjectArgs& args, Tape& tape) {
  NormFirst(args, tape);
  for (const ProjectArgs::Output& output : args.outputs) {
    Multiply({.x = args.normed, .tokens = args.tokens, .weight = output.weight, .y = output.y},
             output.weight.dtype != DType::kF32, tape);
  }
}

void PromptProducts::GateUp(const GateUpArgs& args, Tape& tape) {
  NormFirst(args, tape);
  Linear({.x = args.normed, .tokens = args.tokens, .weight = args.gate, .y = args.out}, tape);
  Linear({.x = args.normed, .tokens = args.tokens, .weight = args.up, .y = args.spare}, tape);
  SwiGlu({.gate = args.out, .up = args.spare, .tokens = args.tokens, .width = args.gate.rows},
         tape);
}

void PromptProducts::Multiply(const LinearArgs& args, bool both_halves, Tape& tape) {
  const WeightView& matrix = args.weight;
  if (args.tokens == 0 || matrix.rows == 0) return;
  if (!library_) library_ = std::make_unique<Library>();
  const size_t value_bytes = SizeOf(matrix.dtype);
  const uint32_t inputs = RoundUp(matrix.cols, kWholeValues);
  // Parts of the outputs that are multiplied at once: as equal as they can be.
  const uint32_t parts = (matrix.rows + kMostOutputs - 1) / kMostOutputs;
  const uint32_t part = parts == 1 ? matrix.rows : RoundUp((matrix.rows + parts - 1) / parts, 128u);
  const Product& whole_part = library_->Find({part, inputs, matrix.dtype});
  const Product& last_part = library_->Find({(matrix.rows - 1) % part + 1, inputs, matrix.dtype});
  // Weights and results are used where they lie if the library can count on their alignment. No
  // result depends on where it was put.
  const bool pad = inputs != matrix.cols || !Aligned(matrix.data);
  // Both halves are one sum before they are added to y, whether a piece is whole or not.
  const bool in_place = parts == 1 && matrix.rows % kWholeValues == 0 && Aligned(args.y) &&
                        !(both_halves && args.accumulate);

  Slab slab;
  const size_t piece_bytes = RoundUp(inputs * value_bytes * kPieceTokens, kScratchAlign);
  slab.tokens = (both_halves ? 2 : 1) * piece_bytes;
  if (pad) slab.weights = RoundUp(inputs * value_bytes * part, kScratchAlign);
  if (!in_place || args.tokens % kPieceTokens != 0) {
    slab.results = sizeof(float) * kPieceTokens * RoundUp(part, kWholeValues);
  }
  slab.workspace = std::max(whole_part.workspace, last_part.workspace);
  std::byte* const piece = tape.Scratch(slab.bytes());
  std::byte* const padded = piece + slab.tokens;
  auto* const results = reinterpret_cast<float*>(padded + slab.weights);
  std::byte* const workspace = padded + slab.weights + slab.results;

  for (uint32_t first = 0; first < args.tokens; first += kPieceTokens) {
    const uint32_t tokens = std::min(args.tokens - first, kPieceTokens);
    const float* x = args.x + size_t{first} * matrix.cols;
    FillPiece(x, Half::kHigh, tokens, matrix.cols, inputs, matrix.dtype, piece, tape);
    if (both_halves) {
      FillPiece(x, Half::kLow, tokens, matrix.cols, inputs, matrix.dtype, piece + piece_bytes,
                tape);
    }
    for (uint32_t from = 0; from < matrix.rows; from += part) {
      const uint32_t outputs = std::min(matrix.rows - from, part);
      const Product& product = outputs == part ? whole_part : last_part;
      const void* weights =
          static_cast<const std::byte*>(matrix.data) + size_t{from} * matrix.cols * value_bytes;
      if (pad) {
        PadWeights(weights, outputs, matrix.cols, inputs, matrix.dtype, padded, tape);
        weights = padded;
      }
      float* y = args.y + size_t{first} * matrix.rows + from;
      const bool direct = in_place && tokens == kPieceTokens;
      float* const to = direct ? y : results;
      library_->Multiply(product, weights, piece, to, direct && args.accumulate, workspace, tape);
      if (both_halves) {
        library_->Multiply(product, weights, piece + piece_bytes, to, true, workspace, tape);
      }
      if (!direct) {
        TakeResults(results, RoundUp(outputs, kWholeValues), tokens, outputs, y, matrix.rows,
                    args.accumulate, tape);
      }
    }
  }
}

}  // namespace sparsekv::cuda
