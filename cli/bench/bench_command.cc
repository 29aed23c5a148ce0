#include "absl/strings/str_join.h"
#include "base/limits.h"
#include "cli/bench/bench.h"
#include "cli/bench/bench_decode.h"
#include "cli/bench/bench_fetch.h"
#include "cli/bench/bench_prefill.h"
#include "cli/bench/random_model.h"
#include "cli/commands.h"

namespace sparsekv {
namespace {

// What depends on the backend, which may be named after it.
void CheckBenchKernels(const KernelBenchOptions& options) {
  const bool cuda = options.backend == "cuda";
  if (!KernelCaseExists(options)) {
    throw CLI::ValidationError("--filter: no case is named like \"" + options.filter + "\"");
  }
  if (options.full && !cuda) throw CLI::ValidationError("--full: only with --backend cuda");
  if (options.threads > 0 && cuda) throw CLI::ValidationError("--threads: only with --backend cpu");
}

// `most`: channels.
void AddLabels(CLI::App* sub, uint32_t most, BenchLabels* labels) {
  sub->add_option_function<std::string>(
         "--label-format",
         [labels](const std::string& name) { labels->format = *ParseLabelFormat(name); },
         "how labels are stored")
      ->check(CLI::IsMember({"bf16", "int8", "int4", "int2"}))
      ->default_str("bf16");
  sub->add_option("--label-channels", labels->channels,
                  "of a label, per KV head (default: head_dim / 4 codes, head_dim / 16 of bf16)")
      ->check(CLI::Range(1u, most));
}

void AddBenchKernels(CLI::App& bench, Command* command) {
  auto options = std::make_shared<KernelBenchOptions>();
  CLI::App* sub = bench.add_subcommand("kernels", "a backend's operations beside ceilings");
  sub->add_option("--backend", options->backend, "whose operations")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  sub->add_flag("--full", options->full, "cuda: every batch and context, in some minutes");
  sub->add_option("--threads", options->threads, "cpu: threads (default: one per core)")
      ->check(CLI::Range(1, 1024));
  sub->add_option("--rounds", options->rounds, "repetitions, of which the median is reported")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  sub->add_option("--filter", options->filter, "only cases whose names contain this");
  AddLabels(sub, kMostLabelChannels, &options->labels);
  sub->add_flag("--json", options->json, "one JSON object on one line");
  sub->callback([=] {
    CheckBenchKernels(*options);
    *command = [=] { return BenchKernels(*options); };
  });
}

// A link is parsed with the options, so that a bad one is bad usage.
void AddLink(CLI::App* sub, LinkSpec* link) {
  sub->add_option_function<std::string>(
         "--link",
         [link](const std::string& text) {
           auto parsed = LinkSpec::Parse(text);
           if (!parsed.ok()) throw CLI::ValidationError(std::string(parsed.status().message()));
           *link = *parsed;
         },
         "simulated link to the device: BYTES_PER_S,LATENCY_S")
      ->default_str("off");
}

void AddDecodeModel(CLI::App* sub, DecodeBenchOptions* o) {
  sub->add_option("--shape", o->shape,
                  "random weights of " + absl::StrJoin(RandomModel::ShapeNames(), ", "))
      ->check(CLI::IsMember(RandomModel::ShapeNames()))
      ->capture_default_str();
  sub->add_option("--weights", o->weights, "how the shape's matrices are stored")
      ->check(CLI::IsMember({"bf16", "int8", "int4", "fp8"}))
      ->capture_default_str();
  sub->add_flag("--random-weights")->description("what there is without --model");
  sub->add_option("--layers", o->layers, "layers (default: the shape's)")
      ->check(CLI::Range(2u, kMaxLayers));
  sub->add_option("--context", o->context, "tokens at the last step")
      ->check(CLI::Range(512u, kMaxContext))
      ->capture_default_str();
  sub->add_option("--batch", o->batch, "sequences")
      ->check(CLI::Range(1u, kMaxBatch))
      ->capture_default_str();
  sub->add_option("--budget", o->budget, "rows of a selection")
      ->check(CLI::Range(70u, DeviceRows::kMostSelected))
      ->capture_default_str();
  sub->add_option("--step-overlap", o->step_overlap,
                  "share of its selections that a step has in common with the one before")
      ->check(CLI::Range(0.1, 0.99))
      ->capture_default_str();
  sub->add_option("--layer-similarity", o->layer_similarity, "cosine of consecutive layers' inputs")
      ->check(CLI::Range(0.1, 0.9999))
      ->capture_default_str();
  sub->add_option("--trace", o->trace, "selections of a real run (--record) instead");
  AddLabels(sub, kMaxHeadDim, &o->labels);
  auto* model = sub->add_option("--model", o->model, "a checkpoint directory, instead of --shape");
  for (const char* labels : {"--label-format", "--label-channels"}) {
    model->excludes(sub->get_option(labels));  // a checkpoint's channels.json says what they are
  }
  auto* text = sub->add_option("--text", o->text, "its prompt");
  model->needs(text);
  text->needs(model);
  sub->add_option("--record", o->record, "writes the selections of the last case")->needs(model);
}

void AddBenchDecode(CLI::App& bench, Command* command) {
  auto o = std::make_shared<DecodeBenchOptions>();
  CLI::App* sub = bench.add_subcommand("decode", "decode steps with offloaded rows");
  AddDecodeModel(sub, o.get());
  AddLink(sub, &o->link);
  const auto on_off = CLI::IsMember({"on", "off"});
  sub->add_option("--predict", o->predict, "list of on, off")
      ->delimiter(',')
      ->check(on_off)
      ->capture_default_str();
  sub->add_option("--hot-rows", o->hot_rows, "list of counts, off")
      ->delimiter(',')
      ->check(CLI::Range(1u, DeviceRows::kMostSelected) | CLI::IsMember({"off"}))
      ->capture_default_str();
  sub->add_option("--fetch", o->fetch, "list of direct, gather")
      ->delimiter(',')
      ->check(CLI::IsMember({"direct", "gather"}))
      ->capture_default_str();
  sub->add_option("--backend", o->backend, "where the measured steps run")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  sub->add_option("--placement", o->placement, "where rows live")
      ->check(CLI::IsMember({"resident", "offload"}))
      ->capture_default_str();
  sub->add_flag("!--no-graphs", o->graphs, "cuda: launch every kernel of a step by itself");
  sub->add_flag("!--no-early-launch", o->early_launch, "cuda: begin kernels one after the other");
  sub->add_flag("--mirror-rows", o->mirror_rows,
                "cuda: rows are twice in host memory, once where the device reads fastest");
  sub->add_flag("--dense", o->dense, "attend every row");
  sub->add_flag("!--uncorrected", o->corrected, "attend what was predicted, as in the paper");
  sub->add_option("--prefetch-percent", o->prefetch_percent, "rows to predict, of the budget")
      ->check(CLI::Range(10u, 1000u))
      ->capture_default_str();
  sub->add_option("--warmup", o->warmup, "steps before the measured ones")
      ->check(CLI::Range(1u, 10000u))
      ->capture_default_str();
  sub->add_option("--steps", o->steps, "measured steps")
      ->check(CLI::Range(1u, 10000u))
      ->capture_default_str();
  sub->add_option("--threads", o->threads, "threads (default: one per core)")
      ->check(CLI::Range(1u, 1024u));
  sub->add_option(
      "--timeline", o->timeline,
      "file for the last case's last step, for the trace viewers of Chrome and Perfetto");
  sub->add_flag("--json", o->json, "one JSON object on one line");
  sub->callback([=] {
    if (o->mirror_rows && (o->backend != "cuda" || o->placement != "offload")) {
      throw CLI::ValidationError("--mirror-rows: only with --backend cuda --placement offload");
    }
    *command = [=] { return BenchDecode(*o); };
  });
}

void AddBenchPrefill(CLI::App& bench, Command* command) {
  auto o = std::make_shared<PrefillBenchOptions>();
  CLI::App* sub = bench.add_subcommand("prefill", "whole prompts of random weights");
  sub->add_option("--shape", o->shape, "which model's sizes")
      ->check(CLI::IsMember(RandomModel::ShapeNames()))
      ->capture_default_str();
  sub->add_option("--layers", o->layers, "layers (default: the shape's)")
      ->check(CLI::Range(2u, kMaxLayers));
  sub->add_option("--tokens", o->tokens, "list of prompt lengths")
      ->delimiter(',')
      ->check(CLI::Range(256u, kMaxContext))
      ->capture_default_str();
  sub->add_option("--placement", o->placement, "where rows live")
      ->check(CLI::IsMember({"resident", "offload"}))
      ->capture_default_str();
  sub->add_option("--backend", o->backend, "where it runs")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  sub->add_flag("--exact-prompts", o->exact_prompts,
                "cuda: inputs of all of a prompt's products keep 16 bits");
  sub->add_option("--rounds", o->rounds, "repetitions after one that warms up")
      ->check(CLI::Range(0u, 100u))
      ->capture_default_str();
  sub->add_option("--threads", o->threads, "threads (default: one per core)")
      ->check(CLI::Range(1u, 1024u));
  sub->add_flag("--json", o->json, "one JSON object on one line");
  sub->callback([=] { *command = [=] { return BenchPrefill(*o); }; });
}

void AddBenchFetch(CLI::App& bench, Command* command) {
  auto o = std::make_shared<FetchBenchOptions>();
  CLI::App* sub = bench.add_subcommand("fetch", "direct and gathered rows, by size and count");
  AddLink(sub, &o->link);
  sub->add_option("--rounds", o->rounds, "repetitions, of which the median is reported")
      ->check(CLI::Range(1u, 1000u))
      ->capture_default_str();
  sub->add_option("--gather-threads", o->gather_threads, "of the store")
      ->check(CLI::Range(1u, 64u))
      ->capture_default_str();
  sub->add_flag("--json", o->json, "one JSON object on one line");
  sub->callback([=] { *command = [=] { return BenchFetch(*o); }; });
}

}  // namespace

void AddBench(CLI::App& app, Command* command) {
  CLI::App* bench = app.add_subcommand("bench", "measure kernels, decode, fetch and serving");
  bench->require_subcommand(1);
  AddBenchKernels(*bench, command);
  AddBenchDecode(*bench, command);
  AddBenchPrefill(*bench, command);
  AddBenchFetch(*bench, command);
  CLI::App* serve = bench->add_subcommand("serve", "serving (not in this version)");
  serve->allow_extras();
  serve->callback([=] {
    *command = [] { return absl::UnimplementedError("bench serve: not in this version"); };
  });
}

}  // namespace sparsekv
