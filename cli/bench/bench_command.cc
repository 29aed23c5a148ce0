#include "cli/bench/bench.h"
#include "cli/commands.h"

namespace sparsekv {
namespace {

void AddBenchKernels(CLI::App& bench, Command* command) {
  auto options = std::make_shared<KernelBenchOptions>();
  CLI::App* sub = bench.add_subcommand("kernels", "the CPU backend's operations beside ceilings");
  sub->add_option("--threads", options->threads, "threads (default: one per core)")
      ->check(CLI::Range(1, 1024));
  sub->add_option("--rounds", options->rounds, "repetitions, of which the median is reported")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  sub->add_option("--filter", options->filter, "only cases whose names contain this")
      ->check([](const std::string& text) {
        return KernelCaseExists(text) ? "" : "no case is named like \"" + text + "\"";
      });
  sub->add_flag("--json", options->json, "one JSON object on one line");
  sub->callback([=] { *command = [=] { return BenchKernels(*options); }; });
}

}  // namespace

void AddBench(CLI::App& app, Command* command) {
  CLI::App* bench = app.add_subcommand("bench", "measure kernels, decode, fetch and serving");
  bench->require_subcommand(1);
  AddBenchKernels(*bench, command);
  CLI::App* serve = bench->add_subcommand("serve", "serving (not in this version)");
  serve->allow_extras();
  serve->callback([=] {
    *command = [] { return absl::UnimplementedError("bench serve: not in this version"); };
  });
}

}  // namespace sparsekv
