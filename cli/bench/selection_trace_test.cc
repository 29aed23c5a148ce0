#include "cli/bench/selection_trace.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

namespace sparsekv {
namespace {

class SelectionTraceTest : public testing::Test {
 protected:
  ~SelectionTraceTest() override { std::filesystem::remove(path_); }

  SelectionTrace Example() {
    SelectionTrace trace({.layers = 3, .kv_heads = 2, .position = 50, .budget = 4, .steps = 2});
    for (uint32_t step = 0; step < 2; ++step) {
      for (uint32_t layer = 0; layer < 3; ++layer) {
        for (uint32_t head = 0; head < 2; ++head) {
          trace.At(step, layer, head, false) = {layer, 10 + head, 20 + step, 50 + step};
          if (layer > 0) trace.At(step, layer, head, true) = {layer, 30};
        }
      }
    }
    return trace;
  }

  const std::string path_ = testing::TempDir() + "trace-" + std::to_string(getpid());
};

TEST_F(SelectionTraceTest, ReadsWhatItWrote) {
  ASSERT_TRUE(Example().Write(path_).ok());
  auto read = SelectionTrace::Read(path_);
  ASSERT_TRUE(read.ok()) << read.status();
  auto expected = Example();
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (bool predicted : {false, true}) {
      EXPECT_EQ(read->At(1, layer, 1, predicted), expected.At(1, layer, 1, predicted));
    }
  }
  // A model of more layers and heads: layer 3 is like layer 1, never like layer 0.
  EXPECT_EQ(read->For(0, 3, 5, true), expected.At(0, 1, 1, true));
  EXPECT_EQ(read->For(0, 4, 0, false), expected.At(0, 2, 0, false));
}

TEST_F(SelectionTraceTest, RefusesWhatIsBroken) {
  EXPECT_TRUE(absl::IsNotFound(SelectionTrace::Read(path_).status()));
  ASSERT_TRUE(Example().Write(path_).ok());
  std::string whole;
  {
    std::ifstream in(path_, std::ios::binary);
    whole.assign(std::istreambuf_iterator<char>(in), {});
  }
  auto refused = [&](const std::string& bytes) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
    return absl::IsDataLoss(SelectionTrace::Read(path_).status());
  };
  EXPECT_FALSE(refused(whole));
  for (size_t length : {size_t{0}, size_t{7}, size_t{27}, size_t{40}, whole.size() - 1}) {
    EXPECT_TRUE(refused(whole.substr(0, length))) << length;
  }
  // Absurd numbers: layers, a list's length, a token beyond the position, tokens out of order.
  const std::string huge(4, '\x7f');
  EXPECT_TRUE(refused(std::string(whole).replace(8, 4, huge)));
  EXPECT_TRUE(refused(std::string(whole).replace(28, 4, huge)));
  EXPECT_TRUE(refused(std::string(whole).replace(44, 4, std::string("\x33\0\0\0", 4))));
  EXPECT_TRUE(refused(std::string(whole).replace(36, 4, std::string("\0\0\0\0", 4))));
}

}  // namespace
}  // namespace sparsekv
