// `sparsekv eval`: what sparse attention loses on a checkpoint, policy beside policy.
#include "absl/strings/str_join.h"
#include "cli/commands.h"
#include "cli/eval/eval.h"

namespace sparsekv {

namespace {

void AddTaskOptions(CLI::App* sub, TaskSettings* t) {
  sub->add_option("--context", t->context, "tokens of a case or window; default the model's");
  sub->add_option("--cases", t->cases,
                  "of every task; default 100 of generated ones, all of a file's or text's");
  sub->add_option("--questions", t->questions, "lookups asked of one context")
      ->check(CLI::Range(1u, 1024u))
      ->capture_default_str();
  sub->add_option("--seed", t->seed, "of generated cases, intervals and `random`")
      ->capture_default_str();
  sub->add_option("--text", t->text_file, "perplexity, recall: the text; needles: their hay");
  sub->add_option("--file", t->file,
                  "cases in their published format: kv-retrieval, lines, passkey, longbench "
                  "(JSONL, may be gzipped), mmlu (a directory)");
  sub->add_option("--phrasing", t->phrasing, "lookup: as deploy/demo was trained")
      ->check(CLI::IsMember({"paper", "lookup"}))
      ->capture_default_str();
  sub->add_option("--stride", t->stride, "tokens between windows; default --context");
  sub->add_option("--last", t->last,
                  "tokens of a window that are decoded; default all (recall: 64)");
  sub->add_flag("--bos-each-window", t->bos_each_window, "every window begins as a text does");
  sub->add_option("--hops", t->hops, "links of a chain; default 64 (chase), 4 (variable-tracking)")
      ->check(CLI::Range(1u, 999u));
  sub->add_option("--needles", t->needles, "niah-multi...: keys, values or questions")
      ->check(CLI::Range(1u, 1024u))
      ->capture_default_str();
  sub->add_option("--haystack", t->haystack,
                  "what needles lie in: --text (or idle sentences), or "
                  "other needles")
      ->check(CLI::IsMember({"text", "needles"}))
      ->capture_default_str();
  sub->add_option("--shots", t->shots, "mmlu: answered questions before each")
      ->check(CLI::Range(0u, 5u))
      ->capture_default_str();
  sub->add_option("--max-new-tokens", t->max_new_tokens, "longbench: of an answer");
}

}  // namespace

void AddEval(CLI::App& app, Command* command) {
  CLI::App* sub = app.add_subcommand("eval", "what policies of sparse attention lose on tasks");
  auto o = std::make_shared<EvalOptions>();
  auto unit = std::make_shared<std::string>("rows");
  sub->add_option("--model", o->model_dir, "checkpoint directory")->required();
  sub->add_option("--task", o->tasks, "one or more of " + absl::StrJoin(TaskNames(), ", "))
      ->delimiter(',');
  sub->add_option("--policy", o->policies,
                  "one or more (dense is always there): all, or NAME[:KEY=VALUE,...] of " +
                      absl::StrJoin(PolicySpec::Names(), ", "));
  sub->add_option("--budget", o->budgets, "one or more of K rows, 1/N of the tokens")
      ->delimiter(',');
  sub->add_option("--budget-unit", *unit, "bytes: what chooses the rows is paid from the budget")
      ->check(CLI::IsMember({"rows", "bytes"}))
      ->capture_default_str();
  AddTaskOptions(sub, &o->task);
  sub->add_option("--channels", o->channels_file, "default MODEL/channels.json");
  sub->add_option("--channels-as", o->channel_sets,
                  "NAME=FILE: another channel config, for policies with from=NAME");
  sub->add_option("--attention-stride", o->attention_stride,
                  "h2o: every so many of a prompt's queries count")
      ->check(CLI::Range(1u, 4096u))
      ->capture_default_str();
  sub->add_flag("--measure-recall", o->measure_recall,
                "say how much of dense attention every policy's selections held (slow)");
  sub->add_flag("--quick", o->quick, "a small sweep of everything, in minutes");
  sub->add_option("--state", o->state_file, "finished cases; a killed sweep goes on from it");
  sub->add_option("--html", o->html_file, "write the report as one page");
  sub->add_flag("--json", o->json, "one object on one line");
  sub->add_option("--threads", o->threads, "0 = every core")->check(CLI::Range(0u, 1024u));
  sub->add_option("--jobs", o->jobs,
                  "cases at once, which share the threads; each has its own rows")
      ->check(CLI::Range(1u, 1024u))
      ->capture_default_str();
  sub->callback([=] {
    o->unit = *unit == "bytes" ? BudgetUnit::kBytes : BudgetUnit::kRows;
    *command = [=] { return Eval(*o); };
  });
}

}  // namespace sparsekv
