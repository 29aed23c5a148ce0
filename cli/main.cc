// sparsekv: the command line. Results go to stdout, logs and errors to stderr; exit 1 on an error,
// 2 on bad usage.
#include <cstdio>

#include "base/log.h"
#include "base/version.h"
#include "cli/commands.h"

namespace sparsekv {
namespace {

// What design and help name, but this version does not have yet.
void AddLater(CLI::App& app, const char* name, const char* what, Command* command) {
  CLI::App* sub = app.add_subcommand(name, std::string(what) + " (not in this version)");
  sub->allow_extras();
  sub->callback([=] {
    *command = [=] {
      return absl::UnimplementedError(std::string(name) + ": not in this version");
    };
  });
}

int Main(int argc, char** argv) {
  CLI::App app{"sparsekv: long-context generation on devices that cannot hold the KV cache"};
  app.set_version_flag("--version", kVersion);
  app.require_subcommand(
      0, 1);  // that there is one is checked below: an unknown one gets its name said
  Command command;
  AddServe(app, &command);
  AddGenerate(app, &command);
  AddChat(app, &command);
  AddInspect(app, &command);
  AddTokenize(app, &command);
  AddLogits(app, &command);
  AddCalibrate(app, &command);
  AddRecall(app, &command);
  AddEval(app, &command);
  AddBench(app, &command);
  AddLater(app, "job", "jobs that outlive their client", &command);
  AddLater(app, "doctor", "what this machine can do", &command);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (!command) {
    std::fprintf(stderr, "A subcommand is required\nRun with --help for more information.\n");
    return 2;
  }
  InitLog("sparsekv");
  const absl::Status status = command();
  if (status.ok()) return 0;
  PrintError("sparsekv", std::string(status.message()));
  return 1;
}

}  // namespace
}  // namespace sparsekv

int main(int argc, char** argv) { return sparsekv::Main(argc, argv); }
