// What happens when somebody dies: clients, and each of the three processes while idle.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/client.h"
#include "tests/server_process.h"

namespace sparsekv {
namespace {

using testing::Client;
using testing::Eventually;
using testing::Reply;
using testing::ScratchDir;
using testing::ServerProcess;

const std::string kDemo = std::string(SPARSEKV_SOURCE_DIR) + "/deploy/demo";

std::vector<std::string> Arguments(const std::string& state) {
  return {"--model", kDemo, "--host-memory", "128M", "--device-memory", "256M", "--state", state};
}

size_t Descriptors(pid_t pid) {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd")) {
    ++count;
  }
  return count;
}

pid_t Child(const ServerProcess& server, const std::string& name) {
  const auto children = server.Children();
  const auto found = children.find(name);
  return found == children.end() ? 0 : found->second;
}

// Runs `sparsekv generate` in the background and kills it once it has printed something.
void KillAClientMidStream(const ServerProcess& server) {
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(fds[1], 1);
    execl((std::string(SPARSEKV_BIN_DIR) + "/sparsekv").c_str(), "sparsekv", "generate", "--grpc",
          server.grpc().c_str(), "--prompt", "And it came to pass", "--max-tokens", "8000",
          "--ignore-eos", nullptr);
    _exit(127);
  }
  close(fds[1]);
  char c = 0;
  EXPECT_EQ(read(fds[0], &c, 1), 1);
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
  close(fds[0]);
}

TEST(FaultsTest, FiftyKilledClientsLeaveNothing) {
  ScratchDir state;
  ServerProcess server(Arguments(state.path()));
  ASSERT_TRUE(server.ready());
  Client client(server.grpc());
  ASSERT_EQ(client.Generate(testing::TextRequest("In the", 4)).code, 0);
  const pid_t coordinator = Child(server, "sparsekv-coordinator");
  const size_t descriptors = Descriptors(coordinator);
  for (int i = 0; i < 50; ++i) KillAClientMidStream(server);
  EXPECT_TRUE(Eventually([&] {
    return server.Metric("sparsekv_host_kv_bytes{state=\"used\"}") == 0 &&
           server.Metric("sparsekv_requests_running") == 0 &&
           server.Metric("sparsekv_device_kv_bytes{kind=\"labels\"}") == 0;
  }));
  EXPECT_TRUE(Eventually([&] { return Descriptors(coordinator) <= descriptors + 1; }))
      << Descriptors(coordinator) << " descriptors, " << descriptors << " before";
  EXPECT_EQ(client.Generate(testing::TextRequest("In the", 4)).code, 0);

  const auto children = server.Children();
  EXPECT_EQ(children.size(), 3u);
  EXPECT_EQ(server.Stop(), 0);
  for (const auto& [name, pid] : children) {
    EXPECT_FALSE(std::ifstream("/proc/" + std::to_string(pid) + "/stat").good()) << name;
  }
  for (const auto& entry : std::filesystem::directory_iterator(state.path())) {
    EXPECT_NE(entry.path().extension(), ".sock") << entry.path();
  }
}

TEST(FaultsTest, EachProcessComesBackAndTheNextJobIsRight) {
  ScratchDir state;
  ServerProcess server(Arguments(state.path()));
  ASSERT_TRUE(server.ready());
  Client client(server.grpc());
  auto request = testing::TextRequest("And God said unto Moses,", 30);
  const Reply before = client.Generate(request);
  ASSERT_EQ(before.code, 0) << before.message;
  for (const char* name : {"sparsekv-gpu-worker", "sparsekv-kv-store", "sparsekv-coordinator"}) {
    const pid_t pid = Child(server, name);
    ASSERT_NE(pid, 0) << name;
    ASSERT_EQ(kill(pid, SIGKILL), 0);
    ASSERT_TRUE(Eventually([&] {
      const pid_t now = Child(server, name);
      return now != 0 && now != pid;
    })) << name;
    ASSERT_TRUE(Eventually([&] { return client.Healthy(); })) << name;
    const Reply after = client.Generate(request);
    EXPECT_EQ(after.code, 0) << name << ": " << after.message;
    EXPECT_EQ(after.ids, before.ids) << name;
  }
  EXPECT_EQ(server.Stop(), 0);
}

// While decoding: the job ends with a status, nothing is lost, and the next one is right.
TEST(FaultsTest, AWorkerThatDiesUnderAJobEndsItWithAStatus) {
  ScratchDir state;
  ServerProcess server(Arguments(state.path()));
  ASSERT_TRUE(server.ready());
  Client client(server.grpc());
  auto request = testing::TextRequest("And", 8000);
  request.set_ignore_eos(true);
  Reply reply;
  std::thread thread([&] { reply = client.Generate(request); });
  ASSERT_TRUE(Eventually([&] { return server.Metric("sparsekv_requests_running") == 1; }));
  kill(Child(server, "sparsekv-gpu-worker"), SIGKILL);
  thread.join();
  EXPECT_EQ(reply.code, 14) << reply.message;  // UNAVAILABLE
  EXPECT_TRUE(
      Eventually([&] { return server.Metric("sparsekv_host_kv_bytes{state=\"used\"}") == 0; }));
  EXPECT_EQ(client.Generate(testing::TextRequest("In the", 4)).code, 0);
  EXPECT_EQ(server.Stop(), 0);
}

// A worker that hangs is killed when its lease ends (30 s), and the server goes on.
TEST(FaultsTest, AHungWorkerIsKilledAndReplaced) {
  ScratchDir state;
  ServerProcess server(Arguments(state.path()));
  ASSERT_TRUE(server.ready());
  Client client(server.grpc());
  auto request = testing::TextRequest("And", 8000);
  request.set_ignore_eos(true);
  Reply reply;
  std::thread thread([&] { reply = client.Generate(request); });
  ASSERT_TRUE(Eventually([&] { return server.Metric("sparsekv_requests_running") == 1; }));
  const pid_t hung = Child(server, "sparsekv-gpu-worker");
  kill(hung, SIGSTOP);
  thread.join();
  EXPECT_EQ(reply.code, 14) << reply.message;  // UNAVAILABLE
  EXPECT_TRUE(Eventually([&] {
    const pid_t now = Child(server, "sparsekv-gpu-worker");
    return now != 0 && now != hung;
  }));
  EXPECT_EQ(client.Generate(testing::TextRequest("In the", 4)).code, 0);
  EXPECT_EQ(server.Stop(), 0);
}

// The segment outlives the store: a job that runs when the store dies goes on.
TEST(FaultsTest, AJobOutlivesTheStore) {
  ScratchDir state;
  ServerProcess server(Arguments(state.path()));
  ASSERT_TRUE(server.ready());
  Client client(server.grpc());
  auto request = testing::TextRequest("And", 600);
  request.set_ignore_eos(true);
  const Reply undisturbed = client.Generate(request);
  Reply reply;
  std::thread thread([&] { reply = client.Generate(request); });
  ASSERT_TRUE(Eventually([&] { return server.Metric("sparsekv_requests_running") == 1; }));
  kill(Child(server, "sparsekv-kv-store"), SIGKILL);
  thread.join();
  EXPECT_EQ(reply.code, 0) << reply.message;
  EXPECT_EQ(reply.ids, undisturbed.ids);
  EXPECT_TRUE(
      Eventually([&] { return server.Metric("sparsekv_host_kv_bytes{state=\"used\"}") == 0; }));
  EXPECT_EQ(server.Stop(), 0);
}

TEST(FaultsTest, ChildrenFollowAParentThatIsKilled) {
  ScratchDir state;
  std::multimap<std::string, pid_t> children;
  {
    ServerProcess server(Arguments(state.path()));
    ASSERT_TRUE(server.ready());
    children = server.Children();
    ASSERT_EQ(children.size(), 3u);
  }  // SIGKILL
  for (const auto& [name, pid] : children) {
    const std::string stat = "/proc/" + std::to_string(pid) + "/stat";
    EXPECT_TRUE(Eventually([&] {
      std::ifstream file(stat);
      std::string word, command, process_state;
      return !(file >> word >> command >> process_state) || process_state == "Z";
    })) << name;
  }
}

}  // namespace
}  // namespace sparsekv
