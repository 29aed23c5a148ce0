#include "base/numa.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/shared_memory.h"

namespace sparsekv {
namespace {

TEST(NumaTest, PagesComeFromTheNode) {
  const PreferNode prefer(0);
  if (!prefer.granted()) GTEST_SKIP() << "this kernel has no memory policies";
  auto fd = CreateMemfd("numa");
  ASSERT_TRUE(fd.ok());
  ASSERT_TRUE(SizeAndPopulate(fd->get(), 1 << 20).ok());
  auto mapping = Mapping::OfFile(fd->get(), 1 << 20, Mapping::Access::kRead);
  ASSERT_TRUE(mapping.ok());
  EXPECT_EQ(static_cast<int>(mapping->data()[4096]), 0);  // touches it
  EXPECT_EQ(NodeOf(mapping->data() + 4096), 0);
}

TEST(NumaTest, ANodeThatIsNotThereIsNoError) {
  for (int node : {-1, 1000, 1024, 1 << 20}) {
    const PreferNode prefer(node);
    EXPECT_FALSE(prefer.granted()) << node;
  }
}

}  // namespace
}  // namespace sparsekv
