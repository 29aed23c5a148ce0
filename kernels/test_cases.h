#pragma once

// What the tests of the operations share: random inputs in every element type, sequences scattered
// over pools, outputs whose every byte is watched, and the backends that they are run on.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/half.h"

namespace sparsekv::testing {

// Memory that the host and every device can use: for all that a backend is given as a pointer.
// Spans, layouts and argument structs are the host's (backend.h).
template <typename T>
struct SharedAllocator {
  using value_type = T;
  SharedAllocator() = default;
  template <typename U>
  SharedAllocator(const SharedAllocator<U>&) {}
  T* allocate(size_t count) { return reinterpret_cast<T*>(AllocateForAll(count * sizeof(T))); }
  void deallocate(T* memory, size_t) { FreeForAll(reinterpret_cast<std::byte*>(memory)); }
  friend bool operator==(const SharedAllocator&, const SharedAllocator&) { return true; }
};
template <typename T>
using Shared = std::vector<T, SharedAllocator<T>>;

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}

  uint32_t Between(uint32_t low, uint32_t high) {  // both included
    return std::uniform_int_distribution<uint32_t>(low, high)(engine_);
  }
  float Normal(float deviation = 1.0f) {
    return std::normal_distribution<float>(0.0f, deviation)(engine_);
  }
  Shared<float> Normals(size_t count, float deviation = 1.0f) {
    Shared<float> values(count);
    for (float& value : values) value = Normal(deviation);
    return values;
  }
  template <typename T>
  T Pick(std::initializer_list<T> choices) {
    return *(choices.begin() + Between(0, static_cast<uint32_t>(choices.size()) - 1));
  }
  template <typename Values>
  void Shuffle(Values& values) {
    std::shuffle(values.begin(), values.end(), engine_);
  }

 private:
  std::mt19937 engine_;
};

// An output array. It starts as NaN, with a margin of NaN on both sides that must stay untouched.
template <typename T>
class Output {
 public:
  explicit Output(size_t count) : count_(count), bytes_((count + 2 * kMargin) * sizeof(T), 0xFF) {}

  T* data() { return reinterpret_cast<T*>(bytes_.data()) + kMargin; }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data()) + kMargin; }
  size_t size() const { return count_; }
  T& operator[](size_t i) { return data()[i]; }
  const T& operator[](size_t i) const { return data()[i]; }

  bool Untouched(size_t from, size_t count) const {
    const unsigned char* first = bytes_.data() + (kMargin + from) * sizeof(T);
    return std::all_of(first, first + count * sizeof(T), [](unsigned char b) { return b == 0xFF; });
  }
  bool MarginsUntouched() const {
    return Untouched(0 - kMargin, kMargin) && Untouched(count_, kMargin);
  }

 private:
  static constexpr size_t kMargin = 64;
  size_t count_;
  Shared<unsigned char> bytes_;
};

// Every element was written, nothing beside it, and all agree with `expected` to `tolerance`.
inline void ExpectNear(const Output<float>& got, const Output<float>& expected, float tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  EXPECT_TRUE(got.MarginsUntouched());
  for (size_t i = 0; i < got.size(); ++i) {
    const float allowed = tolerance * (1 + std::fabs(expected[i]));
    // Not the other way round: NaN must fail.
    if (!(std::fabs(got[i] - expected[i]) <= allowed)) {
      FAIL() << "element " << i << ": " << got[i] << ", expected " << expected[i];
    }
  }
}

template <typename T>
void ExpectSameBits(const T* got, const T* expected, size_t count, const char* what) {
  for (size_t i = 0; i < count; ++i) {
    if (std::memcmp(got + i, expected + i, sizeof(T)) != 0) {
      FAIL() << what << ": element " << i << ": " << got[i] << ", expected " << expected[i];
    }
  }
}

// A weight matrix of random values with its own memory. It begins `skip` elements after an aligned
// address: checkpoints promise no more than the element's alignment.
struct Weights {
  Weights(Random& random, DType dtype, uint32_t rows, uint32_t cols, float deviation,
          uint32_t skip = 0)
      : bytes((size_t{rows} * cols + skip) * SizeOf(dtype)),
        view{bytes.data() + skip * SizeOf(dtype), dtype, rows, cols} {
    for (size_t i = skip; i < size_t{rows} * cols + skip; ++i) {
      StoreValue(bytes.data(), i, dtype, random.Normal(deviation));
    }
  }
  Weights(const Weights&) = delete;

  Shared<std::byte> bytes;
  WeightView view;
};

// Sequences of the given lengths in one layer of a pool of row blocks, in scattered order. What no
// token owns is NaN.
class Rows {
 public:
  Rows(Random& random, uint32_t kv_heads, uint32_t head_dim, DType dtype,
       const std::vector<uint32_t>& lengths) {
    uint32_t blocks = 2;
    for (uint32_t length : lengths) blocks += (length + kBlockTokens - 1) / kBlockTokens;
    layout_ = {
        .layers = 2, .kv_heads = kv_heads, .head_dim = head_dim, .dtype = dtype, .blocks = blocks};
    pool_.assign(layout_.pool_bytes(), std::byte{0xFF});
    std::vector<uint32_t> ids(blocks);
    std::iota(ids.begin(), ids.end(), 0u);
    random.Shuffle(ids);
    for (uint32_t length : lengths) {
      const uint32_t count = (length + kBlockTokens - 1) / kBlockTokens;
      tables_.emplace_back(ids.end() - count, ids.end());
      ids.resize(ids.size() - count);
    }
  }

  void Fill(Random& random, size_t sequence, uint32_t tokens) {
    for (uint32_t h = 0; h < layout_.kv_heads; ++h) {
      for (uint32_t t = 0; t < tokens; ++t) {
        for (uint32_t c = 0; c < 2 * layout_.head_dim; ++c) {
          StoreValue(Table(sequence).Row(h, t), c, layout_.dtype, random.Normal());
        }
      }
    }
  }

  RowTable Table(size_t sequence) {
    return {.layer_base = pool_.data() + layout_.layer_stride(),
            .blocks = tables_[sequence].data(),
            .layout = &layout_};
  }
  const RowLayout& layout() const { return layout_; }
  Shared<std::byte>& pool() { return pool_; }

 private:
  RowLayout layout_;
  Shared<std::byte> pool_;
  std::vector<Shared<uint32_t>> tables_;
};

// Label pages of sequences of the given lengths. What no token owns is NaN.
class Labels {
 public:
  Labels(uint32_t kv_heads, uint32_t channels, const std::vector<uint32_t>& lengths,
         LabelFormat format = LabelFormat::kBf16)
      : layout_{.layers = 2, .kv_heads = kv_heads, .channels = channels, .format = format} {
    const auto pages = [](uint32_t length) { return (length + kBlockTokens - 1) / kBlockTokens; };
    size_t unused = 0;
    for (uint32_t length : lengths) unused += pages(length);
    memory_.assign(unused * layout_.page_bytes(), std::byte{0xFF});
    for (uint32_t length : lengths) {
      pages_.emplace_back();
      for (uint32_t page = 0; page < pages(length); ++page) {
        pages_.back().push_back(memory_.data() + --unused * layout_.page_bytes());
      }
    }
  }
  Labels(const Labels&) = delete;

  void Fill(Random& random, size_t sequence, uint32_t tokens) {
    FillWith(sequence, tokens, [&] { return random.Normal(); });
  }
  // With what value() gives, number by number.
  template <typename Value>
  void FillWith(size_t sequence, uint32_t tokens, const Value& value) {
    std::vector<float> label(layout_.channels);
    for (uint32_t h = 0; h < layout_.kv_heads; ++h) {
      for (uint32_t t = 0; t < tokens; ++t) {
        for (float& x : label) x = value();
        StoreLabel(layout_, Table(sequence).Head(h, t / kBlockTokens), t % kBlockTokens, label);
      }
    }
  }

  LabelTable Table(size_t sequence) {
    return {.pages = pages_[sequence].data(), .layout = &layout_, .layer = 1};
  }
  const LabelLayout& layout() const { return layout_; }
  Shared<std::byte>& memory() { return memory_; }

  // The channels of every KV head: distinct, in no order.
  static Shared<uint16_t> Channels(Random& random, uint32_t kv_heads, uint32_t head_dim,
                                   uint32_t channels) {
    Shared<uint16_t> chosen;
    for (uint32_t h = 0; h < kv_heads; ++h) {
      std::vector<uint16_t> all(head_dim);
      std::iota(all.begin(), all.end(), uint16_t{0});
      random.Shuffle(all);
      chosen.insert(chosen.end(), all.begin(), all.begin() + channels);
    }
    return chosen;
  }

 private:
  LabelLayout layout_;
  Shared<std::byte> memory_;
  std::vector<Shared<std::byte*>> pages_;
};

// A backend under test.
struct BackendCase {
  enum class Kind { kReference, kCpu, kCuda };
  Kind kind = Kind::kReference;
  int64_t target = 0;    // kCpu: the instruction set
  unsigned threads = 0;  // kCpu
};

// What this executable tests (host_backends.cc, cuda_backends.cc). Operations that have no SIMD in
// them need not be tried on every instruction set.
std::vector<BackendCase> BackendCases(bool every_instruction_set);
std::string BackendCaseName(const ::testing::TestParamInfo<BackendCase>& info);

class BackendTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override;
  void TearDown() override;

  Backend& backend() { return *backend_; }  // under test
  Backend& reference() { return *reference_; }
  // Another one whose results must have the same bits: the same instruction set on another number
  // of threads; CUDA without graphs and early launch, with the shared memory of a smaller device.
  Backend& other();

  bool cuda() const { return GetParam().kind == BackendCase::Kind::kCuda; }
  bool slow() const { return GetParam().kind == BackendCase::Kind::kReference; }
  // The kinds of step that the backend computes in different ways. Host backends know one way.
  std::vector<StepKind> Kinds() const;
  float Tolerance(float host, float on_cuda) const { return cuda() ? on_cuda : host; }
  // Of sums of products. A prompt's are made of values that were rounded to 16 bits: their errors
  // are 2^-9 at most, and 0.001 on average, of what is summed.
  float ProductTolerance(float host, StepKind kind) const {
    return Tolerance(host, kind == StepKind::kDecode ? 2e-4f : 3e-2f);
  }

 private:
  std::shared_ptr<Backend> backend_, other_;
  std::unique_ptr<Backend> reference_ = MakeReferenceBackend();
};

template <typename F>
void InStep(Backend& backend, StepKind kind, const F& operations) {
  backend.BeginStep(kind);
  operations();
  backend.EndStep();
}

// An executable may have no backend to test: it says so once.
#define SPARSEKV_ON_BACKENDS(Fixture, every_instruction_set)                         \
  GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Fixture);                            \
  INSTANTIATE_TEST_SUITE_P(                                                          \
      Backends, Fixture,                                                             \
      ::testing::ValuesIn(::sparsekv::testing::BackendCases(every_instruction_set)), \
      ::sparsekv::testing::BackendCaseName)
#define SPARSEKV_ON_EVERY_BACKEND(Fixture) SPARSEKV_ON_BACKENDS(Fixture, true)
#define SPARSEKV_ON_ONE_INSTRUCTION_SET(Fixture) SPARSEKV_ON_BACKENDS(Fixture, false)

}  // namespace sparsekv::testing
