#pragma once

// What the tests of the operations share: random inputs in every element type, sequences scattered
// over pools, outputs whose every byte is watched, and the CPU backend on every instruction set.
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

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}

  uint32_t Between(uint32_t low, uint32_t high) {  // both included
    return std::uniform_int_distribution<uint32_t>(low, high)(engine_);
  }
  float Normal(float deviation = 1.0f) {
    return std::normal_distribution<float>(0.0f, deviation)(engine_);
  }
  std::vector<float> Normals(size_t count, float deviation = 1.0f) {
    std::vector<float> values(count);
    for (float& value : values) value = Normal(deviation);
    return values;
  }
  template <typename T>
  T Pick(std::initializer_list<T> choices) {
    return *(choices.begin() + Between(0, static_cast<uint32_t>(choices.size()) - 1));
  }
  template <typename T>
  void Shuffle(std::vector<T>& values) {
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
  std::vector<unsigned char> bytes_;
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

// A weight matrix of random values with its own memory.
struct Weights {
  Weights(Random& random, DType dtype, uint32_t rows, uint32_t cols, float deviation)
      : bytes(size_t{rows} * cols * SizeOf(dtype)), view{bytes.data(), dtype, rows, cols} {
    for (size_t i = 0; i < size_t{rows} * cols; ++i) {
      StoreValue(bytes.data(), i, dtype, random.Normal(deviation));
    }
  }
  Weights(const Weights&) = delete;

  std::vector<std::byte> bytes;
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
  std::vector<std::byte>& pool() { return pool_; }

 private:
  RowLayout layout_;
  std::vector<std::byte> pool_;
  std::vector<std::vector<uint32_t>> tables_;
};

// Label pages of sequences of the given lengths. What no token owns is NaN.
class Labels {
 public:
  Labels(uint32_t kv_heads, uint32_t channels, const std::vector<uint32_t>& lengths)
      : layout_{.layers = 2, .kv_heads = kv_heads, .channels = channels} {
    for (uint32_t length : lengths) {
      pages_.emplace_back();
      for (uint32_t page = 0; page * kBlockTokens < length; ++page) {
        memory_.emplace_back(layout_.page_bytes(), std::byte{0xFF});
        pages_.back().push_back(memory_.back().data());
      }
    }
  }
  Labels(const Labels&) = delete;

  void Fill(Random& random, size_t sequence, uint32_t tokens) {
    for (uint32_t h = 0; h < layout_.kv_heads; ++h) {
      for (uint32_t t = 0; t < tokens; ++t) {
        for (uint32_t c = 0; c < layout_.channels; ++c) {
          StoreValue(Table(sequence).Head(h, t / kBlockTokens), c * kBlockTokens + t % kBlockTokens,
                     DType::kBF16, random.Normal());
        }
      }
    }
  }

  LabelTable Table(size_t sequence) {
    return {.pages = pages_[sequence].data(), .layout = &layout_, .layer = 1};
  }
  const LabelLayout& layout() const { return layout_; }
  const std::vector<std::vector<std::byte>>& memory() const { return memory_; }

  // The channels of every KV head: distinct, in no order.
  static std::vector<uint16_t> Channels(Random& random, uint32_t kv_heads, uint32_t head_dim,
                                        uint32_t channels) {
    std::vector<uint16_t> chosen;
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
  std::vector<std::vector<std::byte>> memory_;
  std::vector<std::vector<std::byte*>> pages_;
};

// The CPU backend on one instruction set with a number of threads; `reference()` to compare with.
struct CpuCase {
  int64_t target = 0;
  unsigned threads = 1;
};

std::vector<CpuCase> CpuCases();  // every instruction set of this machine, 1 and 3 threads
std::string CpuCaseName(const ::testing::TestParamInfo<CpuCase>& info);

class CpuTest : public ::testing::TestWithParam<CpuCase> {
 protected:
  void SetUp() override;
  void TearDown() override;
  Backend& cpu() { return *cpu_; }
  Backend& reference() { return *reference_; }

 private:
  std::unique_ptr<Backend> cpu_;
  std::unique_ptr<Backend> reference_ = MakeReferenceBackend();
};

#define SPARSEKV_ON_EVERY_CPU(Fixture)                                                         \
  INSTANTIATE_TEST_SUITE_P(Cpu, Fixture, ::testing::ValuesIn(::sparsekv::testing::CpuCases()), \
                           ::sparsekv::testing::CpuCaseName)

}  // namespace sparsekv::testing
