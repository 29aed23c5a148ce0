// `sparsekv recall`: writes a checkpoint that answers exactly at any length, and a pointer chase
// for it.
#include <cstdio>

#include "cli/commands.h"
#include "cli/recall/recall.h"

namespace sparsekv {

void AddRecall(CLI::App& app, Command* command) {
  CLI::App* sub =
      app.add_subcommand("recall", "make a checkpoint whose answers prove what was attended");
  auto o = std::make_shared<RecallOptions>();
  auto dtype = std::make_shared<std::string>(Name(DType::kF32));
  auto codes = std::make_shared<std::string>("easy");
  sub->add_option("--out", o->out, "directory to write")->required();
  sub->add_option("--context", o->context, "tokens of the prompt")->capture_default_str();
  sub->add_option("--hops", o->hops, "pointers to chase")->capture_default_str();
  sub->add_option("--codes", *codes, "easy: any query's row stands out in the labels; hard: not so")
      ->check(CLI::IsMember({"easy", "hard"}))
      ->capture_default_str();
  sub->add_option("--kv-heads", o->model.kv_heads, "KV heads")->capture_default_str();
  sub->add_option("--group", o->model.group, "query heads per KV head")->capture_default_str();
  sub->add_option("--head-dim", o->model.head_dim, "64 or 128")->capture_default_str();
  sub->add_option("--extra-layers", o->model.extra_layers, "small random layers between the two")
      ->capture_default_str();
  sub->add_option(
         "--loud-channels", o->model.loud_channels,
         "per KV head, large in every q and k and the same in all: what calibration should "
         "not choose")
      ->capture_default_str();
  sub->add_option("--dtype", *dtype, "of weights and rows")
      ->check(CLI::IsMember({"float32", "float16", "bfloat16"}))
      ->capture_default_str();
  sub->add_option("--seed", o->model.seed, "another seed, another checkpoint")
      ->capture_default_str();
  sub->callback([=] {
    *command = [=]() -> absl::Status {
      o->model.dtype = *ParseDType(*dtype);
      o->model.difficulty = *codes == "hard" ? RecallDifficulty::kHard : RecallDifficulty::kEasy;
      auto summary = MakeRecall(*o);
      if (!summary.ok()) return summary.status();
      std::printf("%s\n", summary->json.c_str());
      return absl::OkStatus();
    };
  });
}

}  // namespace sparsekv
