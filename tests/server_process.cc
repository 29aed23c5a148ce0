#include "tests/server_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/check.h"

namespace sparsekv::testing {

namespace fs = std::filesystem;

namespace {

std::string BinaryPath(const std::string& name) {
  return std::string(SPARSEKV_BIN_DIR) + "/" + name;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Starts a program with the three standard descriptors.
pid_t Spawn(const std::string& name, const std::vector<std::string>& arguments, int in, int out,
            int err) {
  const pid_t pid = fork();
  CHECK_GE(pid, 0);
  if (pid > 0) return pid;
  if (in >= 0) dup2(in, 0);
  if (out >= 0) dup2(out, 1);
  if (err >= 0) dup2(err, 2);
  std::string path = BinaryPath(name);
  std::vector<char*> argv = {path.data()};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execv(path.c_str(), argv.data());
  _exit(127);
}

int ExitCode(int wait_status) {
  return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

}  // namespace

CommandResult RunBinary(const std::string& name, const std::vector<std::string>& arguments,
                        const std::string& input) {
  ScratchDir dir;
  const std::string in = dir.path() + "/in", out = dir.path() + "/out", err = dir.path() + "/err";
  std::ofstream(in, std::ios::binary) << input;
  const int in_fd = open(in.c_str(), O_RDONLY | O_CLOEXEC);
  const int out_fd = open(out.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  const int err_fd = open(err.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  const pid_t pid = Spawn(name, arguments, in_fd, out_fd, err_fd);
  for (int fd : {in_fd, out_fd, err_fd}) close(fd);
  int status = 0;
  waitpid(pid, &status, 0);
  return {ExitCode(status), ReadFile(out), ReadFile(err)};
}

ServerProcess::ServerProcess(const std::vector<std::string>& arguments) {
  int fds[2];
  CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
  std::vector<std::string> all = {"serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  setenv("SPARSEKV_LOG", "warn", 0);
  pid_ = Spawn("sparsekv", all, -1, fds[1], -1);
  close(fds[1]);
  stdout_ = fds[0];
  std::string line;
  for (char c; read(stdout_, &c, 1) == 1 && c != '\n';) line.push_back(c);
  std::istringstream words(line);
  std::string ready, grpc, http;
  words >> ready >> grpc >> http;
  if (ready != "ready" || !grpc.starts_with("grpc=") || !http.starts_with("http=")) return;
  grpc_ = grpc.substr(5);
  http_ = http.substr(5);
}

ServerProcess::~ServerProcess() {
  if (pid_ != 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (stdout_ >= 0) close(stdout_);
}

std::multimap<std::string, pid_t> ServerProcess::Children() const {
  std::multimap<std::string, pid_t> children;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string stat = ReadFile(entry.path().string() + "/stat");
    const size_t paren = stat.rfind(')');
    if (paren == std::string::npos) continue;
    std::istringstream rest(stat.substr(paren + 1));
    char state = 0;
    pid_t parent = 0;
    rest >> state >> parent;
    if (parent != pid_ || state == 'Z') continue;
    const std::string command = ReadFile(entry.path().string() + "/cmdline");
    children.emplace(fs::path(command.c_str()).filename(), std::stoi(name));
  }
  return children;
}

int ServerProcess::Stop() {
  kill(pid_, SIGTERM);
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = 0;
  return ExitCode(status);
}

std::string ServerProcess::Get(const std::string& path) const {
  const size_t colon = http_.rfind(':');
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::stoi(http_.substr(colon + 1))));
  inet_pton(AF_INET, http_.substr(0, colon).c_str(), &address.sin_addr);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  std::string reply;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
    const std::string request =
        "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    char buffer[4096];
    if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) > 0) {
      for (ssize_t n; (n = recv(fd, buffer, sizeof buffer, 0)) > 0;) reply.append(buffer, n);
    }
  }
  close(fd);
  return reply;
}

double ServerProcess::Metric(const std::string& series) const {
  std::istringstream lines(Get("/metrics"));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(series + " ")) return std::stod(line.substr(series.size() + 1));
  }
  return -1;
}

bool Eventually(const std::function<bool()>& done, double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

ScratchDir::ScratchDir() {
  std::string form = (fs::temp_directory_path() / "sparsekv-test-XXXXXX").string();
  CHECK(mkdtemp(form.data()) != nullptr);
  path_ = form;
}

ScratchDir::~ScratchDir() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace sparsekv::testing
