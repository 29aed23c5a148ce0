// The store as a process: started, killed, and started again.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kv_store/client.h"
#include "kv_store/store_process_testing.h"

namespace sparsekv::kv_store {
namespace {

TEST_F(StoreProcess, AllocationsSurviveKillAndRestart) {
  Start(Args());
  const v1::DescribeResponse first = Describe();
  EXPECT_NE(first.boot_id(), 0u);
  EXPECT_EQ(first.pools(), 2u);
  EXPECT_EQ(first.blocks_per_pool(), 8u);
  ASSERT_EQ(first.free_blocks_size(), 2);
  EXPECT_EQ(first.free_blocks(1), 8u);
  EXPECT_EQ(first.bytes_per_block(), 2u * 8192);
  for (const char* name : {"/grpc", "/attach"}) {
    struct stat info = {};
    ASSERT_EQ(stat((folder_ + name).c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u) << name;
  }
  auto [status, grant] = Allocate(1, 77, 3 * kBlockTokens);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(grant.boot_id(), first.boot_id());
  ASSERT_EQ(grant.blocks_size(), 3);
  EXPECT_EQ(grant.free_blocks(), 5u);
  auto worker = *SegmentClient::Attach(folder_ + "/attach", 1, 5);
  EXPECT_EQ(worker->store_boot_id(), first.boot_id());
  worker->rows()[100] = std::byte{42};

  Kill(SIGKILL);
  EXPECT_FALSE(worker->store_alive());
  Start(Args());
  const v1::DescribeResponse second = Describe();
  EXPECT_NE(second.boot_id(), first.boot_id());
  EXPECT_EQ(second.free_blocks(0), 8u);
  EXPECT_EQ(second.free_blocks(1), 5u);
  ASSERT_TRUE(worker->Reattach().ok());
  EXPECT_EQ(worker->store_boot_id(), second.boot_id());
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(
        worker->CheckBlock(grant.blocks(i), 77, grant.generations(i), i * kBlockTokens).ok());
  }
  EXPECT_EQ(worker->rows()[100], std::byte{42});
  EXPECT_EQ(Allocate(1, 77, 1).first.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  const v1::ReleaseResponse released = Release(1, 77);
  EXPECT_EQ(released.released_blocks(), 3u);
  EXPECT_EQ(released.free_blocks(), 8u);
  EXPECT_TRUE(absl::IsDataLoss(worker->CheckBlock(grant.blocks(0), 77, grant.generations(0), 0)));
  ExpectCleanExit(Kill(SIGTERM));
}

TEST_F(StoreProcess, KillAtAnyMomentLeavesWholeGrantsOnly) {
  for (int round = 0; round < 8; ++round) {
    Start(Args());
    Describe();
    std::thread killer([this, round] {
      std::this_thread::sleep_for(std::chrono::milliseconds(3 * round));
      kill(pid_, SIGKILL);
    });
    for (uint64_t owner = 1;; ++owner) {
      grpc::ClientContext allocate, release;
      v1::AllocateRequest request;
      request.set_owner(owner);
      request.set_tokens(5 * kBlockTokens);
      v1::AllocateResponse grant;
      v1::ReleaseRequest release_request;
      release_request.set_owner(owner);
      v1::ReleaseResponse released;
      auto stub = Stub();
      if (!stub->Allocate(&allocate, request, &grant).ok()) break;
      if (!stub->Release(&release, release_request, &released).ok()) break;
    }
    killer.join();
    Wait();
    Start(Args());
    const uint32_t free_blocks = Describe().free_blocks(0);
    EXPECT_TRUE(free_blocks == 8 || free_blocks == 3) << free_blocks;
    EXPECT_EQ(Reconcile(0, {}).second.free_blocks(), 8u);
    ExpectCleanExit(Kill(SIGTERM));
  }
}

TEST_F(StoreProcess, BadRequestsNameTheirField) {
  Start(Args());
  const auto check = [&](uint32_t pool, uint64_t owner, uint32_t tokens, grpc::StatusCode code,
                         const std::string& field) {
    const grpc::Status status = Allocate(pool, owner, tokens).first;
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_TRUE(status.error_message().starts_with(field)) << status.error_message();
  };
  check(2, 1, 1, grpc::StatusCode::INVALID_ARGUMENT, "pool");
  check(0, 0, 1, grpc::StatusCode::INVALID_ARGUMENT, "owner");
  check(0, 1, 0, grpc::StatusCode::INVALID_ARGUMENT, "tokens");
  check(0, 1, 8 * kBlockTokens + 1, grpc::StatusCode::INVALID_ARGUMENT, "tokens");
  ASSERT_TRUE(Allocate(0, 1, 8 * kBlockTokens).first.ok());
  check(0, 2, 1, grpc::StatusCode::RESOURCE_EXHAUSTED, "tokens");
  EXPECT_EQ(Reconcile(2, {}).first.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Reconcile(0, {1, 2}).second.released_blocks(), 0u);
  EXPECT_EQ(Reconcile(0, {2}).second.released_blocks(), 8u);
}

TEST_F(StoreProcess, SigtermAnswersTheCallsOfManyThreads) {
  Start(Args());
  Describe();
  std::atomic<int> granted = 0;
  std::vector<std::thread> callers;
  for (uint64_t owner = 1; owner <= 4; ++owner) {
    callers.emplace_back([&, owner] {
      auto stub = Stub();
      for (bool connected = false;; connected = true) {
        grpc::ClientContext allocate, release;
        if (!connected) Patient(allocate);  // the store is up, but a busy machine may be slow
        v1::AllocateRequest request;
        request.set_owner(owner);
        request.set_tokens(2 * kBlockTokens);  // four callers fill the pool exactly
        v1::AllocateResponse grant;
        const grpc::Status status = stub->Allocate(&allocate, request, &grant);
        if (!status.ok()) {
          // gRPC cancels what arrives while it shuts down; the caller must ask again later.
          EXPECT_TRUE(status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                      status.error_code() == grpc::StatusCode::CANCELLED)
              << status.error_code() << " " << status.error_message();
          return;
        }
        ++granted;
        v1::ReleaseRequest release_request;
        release_request.set_owner(owner);
        v1::ReleaseResponse released;
        if (!stub->Release(&release, release_request, &released).ok()) return;
        EXPECT_EQ(released.released_blocks(), 2u);
      }
    });
  }
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (granted < 100 && std::chrono::steady_clock::now() < limit) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_GE(granted, 100);
  ExpectCleanExit(Kill(SIGTERM));
  for (std::thread& caller : callers) caller.join();
  Start(Args());
  EXPECT_EQ(Reconcile(0, {}).second.free_blocks(), 8u);  // whole grants at most were left
  ExpectCleanExit(Kill(SIGTERM));
}

TEST_F(StoreProcess, SigtermIsACleanQuickExit) {
  Start(Args());
  Describe();
  EXPECT_EQ(kill(pid_, SIGINT), 0);  // from the terminal: not for the store
  Describe();
  const auto start = std::chrono::steady_clock::now();
  ExpectCleanExit(Kill(SIGTERM));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/attach"));
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/grpc"));
}

TEST_F(StoreProcess, BadUsageExitsWithTwo) {
  for (const auto& [flag, value] :
       std::vector<std::pair<std::string, std::string>>{{"--layers", "0"},
                                                        {"--layers", "x"},
                                                        {"--head-dim", "257"},
                                                        {"--blocks", "-1"},
                                                        {"--row-dtype", "int8"},
                                                        {"--fingerprint", "123"},
                                                        {"--fingerprint", "0x23456789abcdef"},
                                                        {"--meta-fd", "2"}}) {
    std::vector<std::string> args = Args();
    Replace(args, flag, value);
    const Ended ended = Run(args);
    EXPECT_EQ(ended.exit_code(), 2) << flag << " " << value;
    EXPECT_TRUE(ended.error_text.starts_with("sparsekv-kv-store: " + flag)) << ended.error_text;
    EXPECT_EQ(ended.error_text.find('\n'), ended.error_text.size() - 1) << ended.error_text;
  }
  EXPECT_EQ(Run({}).exit_code(), 2);
}

TEST_F(StoreProcess, AnotherModelsSegmentExitsWithOne) {
  Start(Args());
  Describe();
  Kill(SIGKILL);
  std::vector<std::string> args = Args();
  Replace(args, "--fingerprint", "ffffffffffffffff");
  const Ended ended = Run(args);
  EXPECT_EQ(ended.exit_code(), 1);
  EXPECT_EQ(ended.last_line(),
            "sparsekv-kv-store: the segment has fingerprint 0123456789abcdef, expected "
            "ffffffffffffffff");
}

TEST_F(StoreProcess, ADescriptorThatIsNoMemfdExitsWithOne) {
  std::vector<std::string> args = Args();
  Replace(args, "--meta-fd", std::to_string(kNullFd));
  const Ended ended = Run(args);
  EXPECT_EQ(ended.exit_code(), 1);
  EXPECT_NE(ended.last_line().find("is not a memfd"), std::string::npos) << ended.error_text;
}

TEST_F(StoreProcess, TooLittleMemoryExitsWithOne) {
  std::vector<std::string> args = Args();
  Replace(args, "--blocks", "4194304");
  Replace(args, "--kv-heads", "256");
  const Ended ended = Run(args);
  EXPECT_EQ(ended.exit_code(), 1);
  const std::string line = ended.last_line();
  EXPECT_TRUE(line.starts_with("sparsekv-kv-store: segment needs ")) << line;
  EXPECT_TRUE(line.ends_with(" are available")) << line;
  EXPECT_EQ(*AllocatedBytes(rows_[0].get()), 0u);
}

TEST_F(StoreProcess, AParentThatIsGoneExitsWithOne) {
  std::vector<std::string> args = Args();
  Replace(args, "--parent-pid", "1000000000");
  const Ended ended = Run(args);
  EXPECT_EQ(ended.exit_code(), 1);
  EXPECT_EQ(ended.last_line(), "sparsekv-kv-store: the parent process is gone");
}

TEST_F(StoreProcess, DiesWithItsParent) {
  std::vector<std::string> args = Args();
  args.resize(args.size() - 2);  // without --parent-pid: whoever starts it
  // A thread that dies is enough for the kernel's signal, so the parent here is one.
  std::thread parent([&] {
    Start(args);
    Describe();
  });
  parent.join();
  ExpectCleanExit(Wait());
}

}  // namespace
}  // namespace sparsekv::kv_store
