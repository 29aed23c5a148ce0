// `sparsekv chat`: a conversation in a terminal, or a line a turn through a pipe.
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "cli/chat_session.h"
#include "cli/commands.h"
#include "cli/sampling_options.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv {

namespace {

constexpr const char* kHelp =
    "/help          this\n"
    "/read FILE     puts a file's text before your next message\n"
    "/reset         begins the conversation anew\n"
    "/system TEXT   sets the system message and begins anew; without TEXT: none\n"
    "Ctrl-C stops an answer, Ctrl-D ends. A message that begins with / is written with //.\n";

struct ChatOptions {
  std::string grpc = "127.0.0.1:50051";
  std::string system;
  SamplingOptions sampling;
};

// What is shown. In a terminal: a prompt, figures, and no control characters of a model's making.
class Screen {
 public:
  Screen() : terminal_(isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)) {}

  bool terminal() const { return terminal_; }
  void Prompt() const { Write(terminal_ ? "> " : ""); }
  void NewLine() const { Write("\n"); }
  // A remark that is no result.
  void Remark(const std::string& text) const {
    if (terminal_) std::fprintf(stderr, "%s\n", text.c_str());
  }
  void Text(std::string_view text) const {
    std::string shown(text);
    if (terminal_) {
      std::erase_if(
          shown, [](unsigned char c) { return (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f; });
    }
    Write(shown);
  }

 private:
  static void Write(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }
  const bool terminal_;
};

// Ctrl-C ends the answer that is coming; at the prompt it begins a new line. The terminal has
// dropped what was typed by then. Through a pipe it ends the program, as usual.
class Interrupts {
 public:
  // Blocks the signal in every thread that is made from here on, gRPC's too.
  explicit Interrupts(const Screen& screen) : screen_(screen) {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    if (screen.terminal()) pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  }
  // Both live as long as the process.
  void Watch(ChatSession* session) const {
    if (!screen_.terminal()) return;
    std::thread([signals = signals_, session, &screen = screen_] {
      for (int signal = 0; sigwait(&signals, &signal) == 0;) {
        if (session->Stop()) continue;
        screen.NewLine();
        screen.Prompt();
      }
    }).detach();
  }

 private:
  const Screen& screen_;
  sigset_t signals_;
};

std::string Figures(const ChatSession::Answer& answer) {
  if (answer.stopped) return "[stopped]";
  const auto& usage = answer.last.usage();
  const auto& timings = answer.last.timings();
  const double speed = timings.decode_s() > 0 && usage.completion_tokens() > 1
                           ? (usage.completion_tokens() - 1) / timings.decode_s()
                           : 0;
  char text[200];
  std::snprintf(
      text, sizeof text, "[%u + %u tokens, first after %.2f s, %.1f a second%s]",
      usage.prompt_tokens(), usage.completion_tokens(), timings.ttft_s(), speed,
      answer.last.finish_reason() == v1::FINISH_REASON_LENGTH ? ", cut at --max-tokens" : "");
  return text;
}

class Chat {
 public:
  Chat(const ChatOptions& options, ChatSession* session, const Screen& screen)
      : session_(*session), screen_(screen), system_(options.system) {
    session_.Reset(system_);
  }

  // One line of input. Not OK: the answer could not be had.
  absl::Status Take(std::string line) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.starts_with("//")) {
      line.erase(0, 1);
    } else if (line.starts_with('/')) {
      return Obey(line);
    }
    if (line.empty() && read_.empty()) return absl::OkStatus();
    if (const size_t valid = tokenizer::ValidUtf8Prefix(line); valid < line.size()) {
      return absl::InvalidArgumentError(absl::StrCat("stdin: byte ", valid, " is not UTF-8"));
    }
    const std::string text = read_.empty() ? line : read_ + "\n\n" + line;
    auto answer = session_.Say(text, [&](std::string_view part) { screen_.Text(part); });
    if (!answer.ok()) {
      if (screen_.terminal()) screen_.NewLine();
      return answer.status();
    }
    screen_.NewLine();
    screen_.Remark(Figures(*answer));
    read_.clear();
    return absl::OkStatus();
  }

 private:
  absl::Status Obey(const std::string& line) {
    const size_t space = std::min(line.find(' '), line.size());
    const std::string command = line.substr(0, space);
    const std::string rest = space < line.size() ? line.substr(space + 1) : "";
    if (command == "/help") {
      std::fputs(kHelp, stderr);
    } else if (command == "/reset" || command == "/system") {
      if (command == "/system") system_ = rest;
      session_.Reset(system_);
      read_.clear();
      screen_.Remark("[a new conversation]");
    } else if (command == "/read") {
      auto text = ReadInput(rest);
      if (!text.ok()) return text.status();
      if (tokenizer::ValidUtf8Prefix(*text) < text->size()) {
        return absl::InvalidArgumentError(absl::StrCat(rest, ": is not UTF-8"));
      }
      screen_.Remark(absl::StrCat("[", text->size(), " bytes go before your next message]"));
      read_ = *std::move(text);
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat(command, ": no such command; /help lists them"));
    }
    return absl::OkStatus();
  }

  ChatSession& session_;
  const Screen& screen_;
  std::string system_, read_;
};

absl::Status RunChat(const ChatOptions& options) {
  // The signal's thread may use both until the process ends.
  static const Screen screen;
  const Interrupts interrupts(screen);
  static ChatSession session(options.grpc, options.sampling);
  interrupts.Watch(&session);
  if (absl::Status status = session.Check(); !status.ok()) return status;
  Chat chat(options, &session, screen);
  screen.Remark("/help lists commands, Ctrl-D ends");
  std::string line;
  for (screen.Prompt(); std::getline(std::cin, line); screen.Prompt()) {
    const absl::Status status = chat.Take(std::move(line));
    if (status.ok()) continue;
    if (!screen.terminal()) return status;  // what follows would answer something else
    PrintError("sparsekv", std::string(status.message()));
  }
  if (screen.terminal()) screen.NewLine();
  return absl::OkStatus();
}

}  // namespace

void AddChat(CLI::App& app, Command* command) {
  CLI::App* sub = app.add_subcommand("chat", "a conversation with the served model");
  auto o = std::make_shared<ChatOptions>();
  o->sampling.max_tokens = 1024;
  sub->add_option("--grpc", o->grpc, "the server")->capture_default_str();
  sub->add_option("--system", o->system, "the system message");
  o->sampling.AddTo(sub);
  sub->footer(std::string("Through a pipe a line is a turn. In the conversation:\n") + kHelp);
  sub->callback([=] { *command = [=] { return RunChat(*o); }; });
}

}  // namespace sparsekv
