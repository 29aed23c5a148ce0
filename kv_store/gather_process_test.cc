// Gather over a store in a process of its own: stopped, killed, restarted, and left by its worker.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/ids.h"
#include "kv_store/client.h"
#include "kv_store/gather_testing.h"
#include "kv_store/store_process_testing.h"

namespace sparsekv::kv_store {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using State = GatherClient::State;
using Ticket = GatherClient::Ticket;

constexpr uint32_t kPool = 1;
constexpr uint64_t kOwner = 77;
constexpr uint32_t kTokens = 3 * kBlockTokens;

class GatherProcess : public StoreProcess {
 protected:
  std::vector<std::string> Args() const {
    std::vector<std::string> args = StoreProcess::Args();
    Replace(args, "--fingerprint", HexId(kTestFingerprint));
    return args;
  }
  void StartWithWorker() {
    Start(Args());
    auto [status, response] = Allocate(kPool, kOwner, kTokens);
    ASSERT_TRUE(status.ok()) << status.error_message();
    grant_.blocks.assign(response.blocks().begin(), response.blocks().end());
    grant_.generations.assign(response.generations().begin(), response.generations().end());
    AttachWorker();
    WriteSequence(worker_->rows(), worker_->layout(), grant_, kOwner, kTokens);
  }
  void AttachWorker() {
    worker_ = *SegmentClient::Attach(folder_ + "/attach", kPool, 5);
    gather_ = worker_->gather();
    ASSERT_NE(gather_, nullptr);
  }
  std::vector<RowRef> Refs() const {
    std::vector<RowRef> refs;
    for (uint32_t position = 0; position < kTokens; position += 2) {
      refs.push_back(RefOf(grant_, 0, position));
    }
    return refs;
  }
  std::optional<Ticket> Post() { return gather_->Post(1, kOwner, Refs()); }
  // Whether a request was taken and done within the deadline, with the right rows.
  bool Works(milliseconds deadline = std::chrono::seconds(60)) {
    const auto ticket = Post();
    if (!ticket) return false;
    const State state = gather_->Wait(*ticket, steady_clock::now() + deadline);
    for (uint32_t i = 0; state == State::kDone && i < Refs().size(); ++i) {
      EXPECT_TRUE(RowIs(gather_->Rows(*ticket) + i * worker_->layout().row_bytes(),
                        worker_->layout().row_bytes(), RowValue(1, kOwner, 0, 2 * i)));
    }
    gather_->Release(*ticket);
    return state == State::kDone;
  }
  template <typename Condition>
  static bool Eventually(Condition condition) {
    const auto limit = steady_clock::now() + std::chrono::seconds(60);
    while (!condition()) {
      if (steady_clock::now() > limit) return false;
      std::this_thread::sleep_for(milliseconds(1));
    }
    return true;
  }
  void Stop() {
    ASSERT_EQ(kill(pid_, SIGSTOP), 0);
    int status = 0;
    ASSERT_EQ(waitpid(pid_, &status, WUNTRACED), pid_);
    ASSERT_TRUE(WIFSTOPPED(status));
  }
  void Continue() { ASSERT_EQ(kill(pid_, SIGCONT), 0); }
  // How many descriptors a process has open, and how many of them are gather memory.
  struct Descriptors {
    size_t all = 0, gather = 0;
  };
  static Descriptors Of(const std::string& process) {
    Descriptors count;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/" + process + "/fd")) {
      std::error_code gone;  // the one that reads the folder, for example
      const std::string what = std::filesystem::read_symlink(entry, gone).string();
      ++count.all;
      count.gather += what.find("sparsekv-gather") != std::string::npos;
    }
    return count;
  }
  Descriptors OfStore() const { return Of(std::to_string(pid_)); }
  // User and system time so far, in clock ticks of 10 ms.
  uint64_t StoreTicks() const {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/stat");
    std::string word;
    uint64_t user = 0, system = 0;
    for (int field = 1; field < 14; ++field) file >> word;  // no space in the program's name
    file >> user >> system;
    return user + system;
  }

  BlockGrant grant_;
  std::unique_ptr<SegmentClient> worker_;
  GatherClient* gather_ = nullptr;
};

TEST_F(GatherProcess, RowsComeOver) {
  StartWithWorker();
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(Works()) << i;
  ASSERT_EQ(Release(kPool, kOwner).released_blocks(), 3u);
  const auto stale = Post();
  EXPECT_EQ(gather_->Wait(*stale, steady_clock::now() + std::chrono::seconds(60)), State::kRefused);
  const Ended ended = Kill(SIGTERM);
  ExpectCleanExit(ended);
  EXPECT_NE(ended.error_text.find("gathered 96000 rows for 1000 requests, refused 1"),
            std::string::npos)
      << ended.error_text;
}

TEST_F(GatherProcess, AStoppedStoreCostsNoMoreThanTheDeadline) {
  StartWithWorker();
  ASSERT_TRUE(Works());
  Stop();
  std::vector<Ticket> late;
  for (int i = 0; i < 3; ++i) {
    const auto ticket = Post();
    ASSERT_TRUE(ticket);
    const auto deadline = steady_clock::now() + milliseconds(5);
    EXPECT_EQ(gather_->Wait(*ticket, deadline), State::kExpired);
    EXPECT_GE(steady_clock::now(), deadline);
    EXPECT_LT(steady_clock::now(), deadline + std::chrono::seconds(2));  // on a busy machine
    late.push_back(*ticket);
  }
  // Then steps are left alone: in a quarter of a second pauses of 10, 20, 40... leave few requests.
  int tried = 0;
  const auto end = steady_clock::now() + milliseconds(250);
  while (steady_clock::now() < end) {
    const auto ticket = Post();
    if (!ticket) continue;
    ++tried;
    EXPECT_EQ(gather_->Wait(*ticket, steady_clock::now() + milliseconds(1)), State::kExpired);
    gather_->Release(*ticket);
  }
  EXPECT_LE(tried, 5);
  Continue();
  for (const Ticket& ticket : late) {  // it takes up what was asked meanwhile
    EXPECT_EQ(gather_->Wait(ticket, steady_clock::now() + std::chrono::seconds(60)), State::kDone);
    gather_->Release(ticket);
  }
  EXPECT_TRUE(Eventually([&] { return Works(); }));
  ExpectCleanExit(Kill(SIGTERM));
}

TEST_F(GatherProcess, KillAndRestart) {
  StartWithWorker();
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(Works());
    const auto done = Post();
    ASSERT_EQ(gather_->Wait(*done, steady_clock::now() + std::chrono::seconds(60)), State::kDone);
    Stop();
    const auto open = Post(), given_up = Post();
    gather_->Release(*given_up);
    Kill(SIGKILL);
    const auto before = steady_clock::now();
    EXPECT_EQ(gather_->Wait(*open, before + std::chrono::seconds(60)), State::kGone);
    EXPECT_LT(steady_clock::now(), before + std::chrono::seconds(30));
    EXPECT_FALSE(Works());  // turned away
    Start(Args());
    Describe();
    EXPECT_FALSE(Works());
    ASSERT_TRUE(worker_->Reattach().ok());
    EXPECT_EQ(gather_, worker_->gather());
    EXPECT_EQ(gather_->Wait(*open, steady_clock::now()), State::kGone);
    EXPECT_NE(gather_->Rows(*done), nullptr);
    gather_->Release(*open);
    gather_->Release(*done);
    EXPECT_TRUE(Works());
  }
  ExpectCleanExit(Kill(SIGTERM));
}

TEST_F(GatherProcess, AWorkerThatGoesMidRequestLeavesNothing) {
  StartWithWorker();
  ASSERT_TRUE(Works());
  const size_t of_store = OfStore().all, own = Of("self").all;  // gRPC may still close some
  EXPECT_EQ(OfStore().gather, 1u);
  for (int round = 0; round < 5; ++round) {
    Stop();
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(Post());
    worker_.reset();  // to the store it looks like a kill: the kernel closes everything
    Continue();
    // A socket, the memory and two eventfds.
    EXPECT_TRUE(Eventually([&] { return OfStore().gather == 0 && OfStore().all <= of_store - 4; }));
    AttachWorker();
    EXPECT_TRUE(Works());
    EXPECT_TRUE(Eventually([&] { return OfStore().all <= of_store && Of("self").all <= own; }));
  }
}

TEST_F(GatherProcess, AnIdleStoreSleeps) {
  StartWithWorker();
  ASSERT_TRUE(Works());
  std::this_thread::sleep_for(milliseconds(50));  // what a start leaves to gRPC
  const uint64_t before = StoreTicks();
  EXPECT_GT(before, 0u);
  std::this_thread::sleep_for(milliseconds(1000));
  EXPECT_LT(StoreTicks() - before, 20u);
  EXPECT_TRUE(Works());
}

TEST_F(GatherProcess, WithoutThreadsNoneIsOffered) {
  std::vector<std::string> args = Args();
  args.insert(args.end(), {"--gather-threads", "0", "--staging-bytes", "1"});
  Start(args);
  Describe();
  worker_ = *SegmentClient::Attach(folder_ + "/attach", kPool, 5);
  EXPECT_EQ(worker_->gather(), nullptr);
  ExpectCleanExit(Kill(SIGTERM));
}

TEST_F(GatherProcess, BadFlagsExitWithTwo) {
  for (const auto& [flag, value] :
       std::vector<std::pair<std::string, std::string>>{{"--gather-threads", "65"},
                                                        {"--gather-threads", "-1"},
                                                        {"--staging-bytes", "0"},
                                                        {"--staging-bytes", "32767"}}) {
    std::vector<std::string> args = Args();
    args.insert(args.end(), {flag, value});
    const Ended ended = Run(args);
    EXPECT_EQ(ended.exit_code(), 2) << flag << " " << value;
    EXPECT_TRUE(ended.error_text.starts_with("sparsekv-kv-store: " + flag)) << ended.error_text;
  }
}

}  // namespace
}  // namespace sparsekv::kv_store
