#include "cli/sampling_options.h"

#include "base/limits.h"
#include "cli/commands.h"

namespace sparsekv {

void SamplingOptions::AddTo(CLI::App* command) {
  command->add_option("--max-tokens", max_tokens, "tokens to generate at most")
      ->check(CLI::Range(1u, kMaxContext))
      ->capture_default_str();
  command->add_option("--temperature", temperature, "0 = greedy")->capture_default_str();
  command->add_option("--top-p", top_p, "mass of the tokens drawn from")->capture_default_str();
  command->add_option("--top-k", top_k, "number of the tokens drawn from, 0 = all")
      ->capture_default_str();
  seed_set = command->add_option("--seed", seed, "default: the server draws one");
  command->add_option("--stop", stop, "a string that ends the text; may be repeated")
      ->allow_extra_args(false);
  command->add_option("--attention", attention, "default: the server's")
      ->check(CLI::IsMember({"dense", "double-sparsity"}));
  command->add_option("--budget", budget, "rows of a selection: K or 1/N; default the server's");
  recall_target_set = command->add_option(
      "--recall-target", recall_target,
      "share of dense attention, 0 to 1, that selections are to hold; --budget is then the most "
      "rows they may take, default 1/4");
}

absl::Status SamplingOptions::Apply(v1::GenerateRequest* request) const {
  request->set_max_new_tokens(max_tokens);
  request->set_temperature(static_cast<float>(temperature));
  request->set_top_p(static_cast<float>(top_p));
  request->set_top_k(top_k);
  if (seed_set->count() > 0) request->set_seed(seed);
  for (const std::string& text : stop) request->add_stop(text);
  if (attention == "dense") request->set_attention(v1::ATTENTION_DENSE);
  if (attention == "double-sparsity") request->set_attention(v1::ATTENTION_DOUBLE_SPARSITY);
  if (recall_target_set->count() > 0) request->set_recall_target(recall_target);
  if (budget.empty()) return absl::OkStatus();
  uint32_t rows = 0, denominator = 0;
  const absl::Status status = ParseBudget(budget, &rows, &denominator);
  if (!status.ok()) return status;
  if (rows) request->mutable_budget()->set_rows(rows);
  if (denominator) request->mutable_budget()->set_fraction_denominator(denominator);
  return absl::OkStatus();
}

}  // namespace sparsekv
