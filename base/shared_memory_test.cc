#include "base/shared_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace sparsekv {
namespace {

constexpr size_t kBytes = 3 * 4096;

UniqueFd Populated(size_t bytes) {
  UniqueFd fd = *CreateMemfd("test");
  EXPECT_TRUE(SizeAndPopulate(fd.get(), bytes).ok());
  return fd;
}

TEST(UniqueFd, ClosesWhatItOwnsOnce) {
  int raw = -1;
  {
    UniqueFd fd = *CreateMemfd("test");
    raw = fd.get();
    UniqueFd moved = std::move(fd);
    EXPECT_FALSE(fd);  // NOLINT(bugprone-use-after-move): the moved-from state is the subject
    EXPECT_EQ(moved.get(), raw);
  }
  EXPECT_EQ(fcntl(raw, F_GETFD), -1);
  UniqueFd kept = *CreateMemfd("test");
  const int released = kept.release();
  EXPECT_NE(fcntl(released, F_GETFD), -1);
  close(released);
}

TEST(SharedMemory, MemfdsAreCloseOnExecAndEmpty) {
  UniqueFd fd = *CreateMemfd("test");
  EXPECT_EQ(fcntl(fd.get(), F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(*FileBytes(fd.get()), 0u);
  EXPECT_FALSE(*IsSizeSealed(fd.get()));
}

TEST(SharedMemory, PopulatingAllocatesEveryPage) {
  UniqueFd fd = *CreateMemfd("test");
  EXPECT_EQ(*AllocatedBytes(fd.get()), 0u);
  ASSERT_TRUE(SizeAndPopulate(fd.get(), kBytes).ok());
  EXPECT_EQ(*FileBytes(fd.get()), kBytes);
  EXPECT_GE(*AllocatedBytes(fd.get()), kBytes);
  EXPECT_TRUE(SizeAndPopulate(fd.get(), kBytes).ok());  // may be repeated
}

TEST(SharedMemory, PopulatesAcrossSlices) {
  const size_t bytes = (size_t{256} << 20) + 4096;
  UniqueFd fd = Populated(bytes);
  EXPECT_GE(*AllocatedBytes(fd.get()), bytes);
}

TEST(SharedMemory, SealedSizeCannotChange) {
  UniqueFd fd = Populated(kBytes);
  ASSERT_TRUE(SealSize(fd.get()).ok());
  EXPECT_TRUE(*IsSizeSealed(fd.get()));
  EXPECT_TRUE(SealSize(fd.get()).ok());
  EXPECT_EQ(ftruncate(fd.get(), kBytes - 1), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(ftruncate(fd.get(), kBytes + 1), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE), -1);
  EXPECT_FALSE(SizeAndPopulate(fd.get(), 2 * kBytes).ok());
  EXPECT_TRUE(SizeAndPopulate(fd.get(), kBytes).ok());
}

TEST(SharedMemory, ADescriptorThatIsNoMemfdIsAnError) {
  UniqueFd fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(IsSizeSealed(fd.get()).ok());
  EXPECT_FALSE(SealSize(fd.get()).ok());
  EXPECT_FALSE(FileBytes(-1).ok());
  EXPECT_FALSE(SizeAndPopulate(fd.get(), 1).ok());
}

TEST(SharedMemory, ReadOnlyDescriptorCannotBeMappedWritable) {
  UniqueFd fd = Populated(kBytes);
  UniqueFd read_only = *ReopenReadOnly(fd.get());
  EXPECT_EQ(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, read_only.get(), 0),
            MAP_FAILED);
  EXPECT_EQ(errno, EACCES);
  EXPECT_FALSE(Mapping::OfFile(read_only.get(), kBytes, Mapping::Access::kReadWrite).ok());
  Mapping reader = *Mapping::OfFile(read_only.get(), kBytes, Mapping::Access::kRead);
  EXPECT_EQ(mprotect(reader.data(), kBytes, PROT_READ | PROT_WRITE), -1);
  Mapping writer = *Mapping::OfFile(fd.get(), kBytes, Mapping::Access::kReadWrite);
  std::memset(writer.data(), 7, kBytes);
  EXPECT_EQ(reader.data()[kBytes - 1], std::byte{7});
}

TEST(Mapping, NeverReachesPastTheFile) {
  UniqueFd fd = Populated(kBytes);
  absl::StatusOr<Mapping> mapping = Mapping::OfFile(fd.get(), kBytes + 1, Mapping::Access::kRead);
  EXPECT_EQ(mapping.status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(Mapping, OutlivesItsDescriptorAndMoves) {
  Mapping mapping;
  {
    UniqueFd fd = Populated(kBytes);
    mapping = *Mapping::OfFile(fd.get(), kBytes, Mapping::Access::kReadWrite);
  }
  mapping.data()[0] = std::byte{1};
  Mapping moved = std::move(mapping);
  EXPECT_EQ(mapping.data(), nullptr);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(moved.data()[0], std::byte{1});
  EXPECT_EQ(moved.size(), kBytes);
}

TEST(Mapping, AnonymousMemoryIsZeroed) {
  Mapping mapping = *Mapping::Anonymous(kBytes);
  for (size_t i = 0; i < kBytes; ++i) ASSERT_EQ(mapping.data()[i], std::byte{0});
}

}  // namespace
}  // namespace sparsekv
