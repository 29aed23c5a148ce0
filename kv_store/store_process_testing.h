#pragma once

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "base/shared_memory.h"
#include "kv_store/segment_layout.h"
#include "sparsekv/v1/kv_store.grpc.pb.h"

extern char** environ;

// For tests: the store as a process, started as the parent starts it.
namespace sparsekv::kv_store {

inline constexpr int kMetaFd = 10;  // as the child sees them
inline constexpr int kFirstRowsFd = 11;
inline constexpr int kNullFd = 20;  // /dev/null

struct Ended {
  int status = 0;  // of waitpid
  std::string error_text;
  int exit_code() const { return WIFEXITED(status) ? WEXITSTATUS(status) : -1; }
  std::string last_line() const {
    const std::string text = error_text.substr(0, error_text.find_last_not_of('\n') + 1);
    return text.substr(text.rfind('\n') + 1);
  }
};

class StoreProcess : public testing::Test {
 protected:
  StoreProcess() {
    char folder[] = "/tmp/sparsekv-store-XXXXXX";
    folder_ = mkdtemp(folder);
    meta_ = *CreateMemfd("meta");
    for (int i = 0; i < 2; ++i) rows_.push_back(*CreateMemfd("rows"));
  }
  ~StoreProcess() override {
    if (pid_ > 0) Kill(SIGKILL);
    std::filesystem::remove_all(folder_);
  }

  std::vector<std::string> Args() const {
    return {"--grpc-socket",   folder_ + "/grpc",
            "--attach-socket", folder_ + "/attach",
            "--meta-fd",       std::to_string(kMetaFd),
            "--rows-fd",       std::to_string(kFirstRowsFd),
            "--rows-fd",       std::to_string(kFirstRowsFd + 1),
            "--layers",        "2",
            "--kv-heads",      "1",
            "--head-dim",      "16",
            "--row-dtype",     "float32",
            "--blocks",        "8",
            "--fingerprint",   "0123456789abcdef",
            "--parent-pid",    std::to_string(getpid())};
  }
  static void Replace(std::vector<std::string>& args, const std::string& flag,
                      const std::string& value) {
    *(std::find(args.begin(), args.end(), flag) + 1) = value;
  }

  void Start(const std::vector<std::string>& args) {
    std::vector<char*> argv;
    std::string program = SPARSEKV_BIN_DIR "/sparsekv-kv-store";
    argv.push_back(program.data());
    std::vector<std::string> copies = args;
    for (std::string& arg : copies) argv.push_back(arg.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 2, (folder_ + "/stderr").c_str(),
                                     O_CREAT | O_WRONLY | O_TRUNC, 0600);
    posix_spawn_file_actions_addopen(&actions, kNullFd, "/dev/null", O_RDWR, 0);
    // A duplicate has no close-on-exec flag; the original keeps it.
    posix_spawn_file_actions_adddup2(&actions, meta_.get(), kMetaFd);
    for (int i = 0; i < 2; ++i) {
      posix_spawn_file_actions_adddup2(&actions, rows_[i].get(), kFirstRowsFd + i);
    }
    ASSERT_EQ(posix_spawn(&pid_, program.c_str(), &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
  }
  Ended Wait() {
    Ended ended;
    EXPECT_EQ(waitpid(pid_, &ended.status, 0), pid_);
    pid_ = -1;
    std::stringstream text;
    text << std::ifstream(folder_ + "/stderr").rdbuf();
    ended.error_text = text.str();
    return ended;
  }
  Ended Kill(int signal_number) {
    kill(pid_, signal_number);
    return Wait();
  }
  static void ExpectCleanExit(const Ended& ended) {
    EXPECT_EQ(ended.exit_code(), 0) << ended.error_text;
  }
  Ended Run(const std::vector<std::string>& args) {
    Start(args);
    return Wait();
  }

  std::unique_ptr<v1::KvStore::Stub> Stub() {
    // A start is awaited by connecting until it works: soon again, not after gRPC's second.
    grpc::ChannelArguments options;
    options.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
    options.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
    return v1::KvStore::NewStub(grpc::CreateCustomChannel(
        "unix:" + folder_ + "/grpc", grpc::InsecureChannelCredentials(), options));
  }
  static void Patient(grpc::ClientContext& context) {
    context.set_wait_for_ready(true);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  }
  v1::DescribeResponse Describe() {
    grpc::ClientContext context;
    Patient(context);
    v1::DescribeResponse response;
    const grpc::Status status = Stub()->Describe(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  std::pair<grpc::Status, v1::AllocateResponse> Allocate(uint32_t pool, uint64_t owner,
                                                         uint32_t tokens) {
    grpc::ClientContext context;
    Patient(context);
    v1::AllocateRequest request;
    request.set_pool(pool);
    request.set_owner(owner);
    request.set_tokens(tokens);
    v1::AllocateResponse response;
    grpc::Status status = Stub()->Allocate(&context, request, &response);
    return {status, response};
  }
  v1::ReleaseResponse Release(uint32_t pool, uint64_t owner) {
    grpc::ClientContext context;
    Patient(context);
    v1::ReleaseRequest request;
    request.set_pool(pool);
    request.set_owner(owner);
    v1::ReleaseResponse response;
    EXPECT_TRUE(Stub()->Release(&context, request, &response).ok());
    return response;
  }
  std::pair<grpc::Status, v1::ReconcileResponse> Reconcile(uint32_t pool,
                                                           const std::vector<uint64_t>& live) {
    grpc::ClientContext context;
    Patient(context);
    v1::ReconcileRequest request;
    request.set_pool(pool);
    request.mutable_live_owners()->Assign(live.begin(), live.end());
    v1::ReconcileResponse response;
    grpc::Status status = Stub()->Reconcile(&context, request, &response);
    return {status, response};
  }

  std::string folder_;
  UniqueFd meta_;
  std::vector<UniqueFd> rows_;
  pid_t pid_ = -1;
};

}  // namespace sparsekv::kv_store
