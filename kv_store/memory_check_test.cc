#include "kv_store/memory_check.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace sparsekv::kv_store {
namespace {

class MemoryCheck : public testing::Test {
 protected:
  MemoryCheck() {
    char folder[] = "/tmp/sparsekv-memory-XXXXXX";
    root_ = mkdtemp(folder);
    sources_ = {
        .meminfo = root_ / "meminfo", .own_cgroup = root_ / "own", .cgroup_root = root_ / "fs"};
    Write("meminfo",
          "MemTotal:  4000 kB\nMemFree: 1 kB\nMemAvailable:    2000 kB\nBuffers: 5 kB\n");
  }
  ~MemoryCheck() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& name, const std::string& text) {
    std::filesystem::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
  }
  size_t Available() { return *AvailableMemory(sources_); }

  std::filesystem::path root_;
  MemorySources sources_;
};

TEST_F(MemoryCheck, WithoutACgroupItIsMemAvailable) {
  EXPECT_EQ(Available(), size_t{2000} << 10);
  Write("own", "4:memory:/version/one\n");
  EXPECT_EQ(Available(), size_t{2000} << 10);
}

TEST_F(MemoryCheck, TheTightestCgroupOnTheWayUpBinds) {
  Write("own", "0::/slice/unit\n");
  Write("fs/slice/unit/memory.max", "max\n");
  Write("fs/slice/unit/memory.current", "4096\n");
  EXPECT_EQ(Available(), size_t{2000} << 10);
  Write("fs/slice/memory.max", "1000000\n");
  Write("fs/slice/memory.current", "400000\n");
  EXPECT_EQ(Available(), 600000u);
  Write("fs/slice/unit/memory.max", "5096\n");
  EXPECT_EQ(Available(), 1000u);
  Write("fs/slice/memory.current", "1000001\n");  // over its limit already
  EXPECT_EQ(Available(), 0u);
}

TEST_F(MemoryCheck, AContainersOwnRootCounts) {
  Write("own", "0::/\n");
  Write("fs/memory.max", "5000\n");
  Write("fs/memory.current", "1000\n");
  EXPECT_EQ(Available(), 4000u);
}

TEST_F(MemoryCheck, NoMeminfoIsAnError) {
  sources_.meminfo = root_ / "missing";
  EXPECT_FALSE(AvailableMemory(sources_).ok());
}

TEST_F(MemoryCheck, ThisMachineHasSome) { EXPECT_GT(*AvailableMemory(), size_t{1} << 20); }

TEST_F(MemoryCheck, TheErrorNamesBothNumbers) {
  EXPECT_TRUE(CheckMemory(10, 10).ok());
  const absl::Status status = CheckMemory(11, 10);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "segment needs 11 bytes, 10 are available");
}

}  // namespace
}  // namespace sparsekv::kv_store
