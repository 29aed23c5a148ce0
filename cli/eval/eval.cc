#include "cli/eval/eval.h"

#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/ids.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/eval/report/report.h"
#include "cli/eval/state_file.h"
#include "cli/eval/sweep.h"
#include "gpu_worker/checkpoint/json_file.h"

namespace sparsekv {

namespace {

using ChannelSets = std::map<std::string, ChannelConfig>;

constexpr uint32_t kGeneratedCases = 100;
constexpr uint32_t kRecallSteps = 64;
constexpr uint32_t kLeastContext = 128;

absl::Status Bad(const std::string& what) { return absl::InvalidArgumentError(what); }

// "quick" fills in what was not said.
void FillIn(EvalOptions* o, const ModelConfig& config) {
  TaskSettings& t = o->task;
  if (o->quick) {
    if (o->tasks.empty()) {
      o->tasks = {"kv-retrieval", "passkey"};
      if (!t.text_file.empty()) o->tasks.insert(o->tasks.begin(), "perplexity");
    }
    if (o->policies.empty()) o->policies = {"all"};
    if (o->budgets.empty()) o->budgets = {"1/4", "1/8", "1/16"};
    if (t.context == 0) t.context = std::min(2048u, config.max_context);
    if (t.cases == 0) t.cases = 8;
    if (t.last == 0) t.last = 128;
  }
  if (o->policies.empty()) o->policies = {"double-sparsity"};
  if (o->budgets.empty()) o->budgets = {absl::StrCat("1/", kDefaultBudgetDenominator)};
  if (t.context == 0) t.context = config.max_context;
}

// Dense first, then every policy at every budget.
absl::StatusOr<std::vector<Candidate>> Candidates(const EvalOptions& o, bool has_channels) {
  std::vector<std::string> texts;
  for (const std::string& text : o.policies) {
    if (text != "all") {
      texts.push_back(text);
      continue;
    }
    for (const std::string& name : PolicySpec::Names()) {
      if (has_channels || !name.starts_with("double-sparsity")) texts.push_back(name);
    }
    if (has_channels) texts.push_back("double-sparsity-offload:correction=none");
    texts.push_back("streaming-llm:positions=lm-infinite");
  }
  std::vector<RowBudget> budgets;
  for (const std::string& text : o.budgets) {
    RowBudget budget;
    if (absl::Status s = ParseBudget(text, &budget.rows, &budget.denominator); !s.ok()) return s;
    budgets.push_back(budget);
  }
  auto dense = PolicySpec::Parse("dense");
  std::vector<Candidate> candidates = {{*dense, RowBudget{}}};
  for (const std::string& text : texts) {
    auto policy = PolicySpec::Parse(text);
    if (!policy.ok()) return policy.status();
    if (policy->dense()) continue;
    for (const RowBudget& budget : budgets) candidates.push_back({*policy, budget});
  }
  return candidates;
}

std::vector<TokenKind> Kinds(const Tokenizer& tokenizer, uint32_t vocab) {
  std::vector<TokenKind> kinds(vocab, TokenKind::kOther);
  for (uint32_t id = 0; id < std::min(vocab, tokenizer.vocab_size()); ++id) {
    if (tokenizer.IsSpecial(id)) {
      kinds[id] = TokenKind::kSpecial;
      continue;
    }
    bool seen = false, all = true;
    for (unsigned char c : tokenizer.Decode({&id, 1}, false)) {
      if (std::isspace(c)) continue;
      seen = true;
      all = all && std::ispunct(c);
    }
    if (seen && all) kinds[id] = TokenKind::kPunctuation;
  }
  return kinds;
}

absl::StatusOr<std::string> FileHash(const std::string& path);

// Of the names and contents of dev/*.csv and test/*.csv, wherever the directory is.
absl::StatusOr<std::string> DirectoryHash(const std::string& path) {
  std::vector<std::string> names;
  for (const char* part : {"dev", "test"}) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(path + "/" + part, error)) {
      if (entry.path().extension() != ".csv") continue;
      names.push_back(absl::StrCat(part, "/", entry.path().filename().string()));
    }
  }
  std::ranges::sort(names);
  std::string all;
  for (const std::string& name : names) {
    auto hash = FileHash(absl::StrCat(path, "/", name));
    if (!hash.ok()) return hash.status();
    absl::StrAppend(&all, name, "\n", *hash, "\n");
  }
  return HexId(XXH3_64bits(all.data(), all.size()));
}

absl::StatusOr<std::string> FileHash(const std::string& path) {
  std::error_code error;
  if (path.empty()) return std::string();
  if (std::filesystem::is_directory(path, error)) return DirectoryHash(path);
  auto text = ReadInput(path);
  if (!text.ok()) return text.status();
  return HexId(XXH3_64bits(text->data(), text->size()));
}

nlohmann::ordered_json ToJson(const ChannelConfig& c) {
  return {{"criterion", c.criterion},
          {"count", c.channels},
          {"pooling", Name(c.pooling)},
          {"label_format", Name(c.label_format)},
          {"xxh3", HexId(XXH3_64bits(c.order.data(), c.order.size() * sizeof(c.order[0])))}};
}

// Everything that the results depend on, and nothing else.
absl::StatusOr<nlohmann::ordered_json> Settings(const EvalOptions& o, const ModelFiles& files,
                                                const ChannelSets& sets,
                                                std::span<const Candidate> candidates) {
  const TaskSettings& t = o.task;
  auto text_hash = FileHash(t.text_file);
  if (!text_hash.ok()) return text_hash.status();
  auto file_hash = FileHash(t.file);
  if (!file_hash.ok()) return file_hash.status();
  std::string model = std::filesystem::weakly_canonical(o.model_dir).filename().string();
  nlohmann::ordered_json json = {{"model", model},
                                 {"fingerprint", HexId(files.weights->fingerprint())},
                                 {"rows", Name(files.config.row_dtype)},
                                 {"layers", files.config.layers},
                                 {"kv_heads", files.config.kv_heads},
                                 {"query_heads", files.config.heads},
                                 {"head_dim", files.config.head_dim},
                                 {"tasks", o.tasks},
                                 {"budget_unit", o.unit == BudgetUnit::kRows ? "rows" : "bytes"},
                                 {"context", t.context},
                                 {"cases", t.cases},
                                 {"questions", t.questions},
                                 {"seed", t.seed},
                                 {"phrasing", t.phrasing},
                                 {"stride", t.stride},
                                 {"last", t.last},
                                 {"bos_each_window", t.bos_each_window},
                                 {"hops", t.hops},
                                 {"needles", t.needles},
                                 {"haystack", t.haystack},
                                 {"shots", t.shots},
                                 {"max_new_tokens", t.max_new_tokens},
                                 {"attention_stride", o.attention_stride},
                                 {"measure_recall", o.measure_recall},
                                 {"text", t.text_file},
                                 {"text_xxh3", *text_hash},
                                 {"file", t.file},
                                 {"file_xxh3", *file_hash}};
  for (const Candidate& c : candidates) {
    json["candidates"].push_back(CandidateText(c));
  }
  if (const ChannelConfig* c = files.channel_config()) json["channels"] = ToJson(*c);
  for (const auto& [name, config] : sets) json["channels_as"][name] = ToJson(config);
  return json;
}

// What a result depends on beside its task, case and candidate: a sweep may be widened.
nlohmann::ordered_json StateSettings(nlohmann::ordered_json settings) {
  for (const char* name : {"tasks", "cases", "candidates", "text", "file"}) settings.erase(name);
  return settings;
}

TaskSummary SummaryOf(const NamedTask& named, std::span<const Candidate> candidates,
                      const StateFile& state, uint64_t seed) {
  const Task& task = *named.task;
  TaskSummary summary = {named.name, task.about(), task.metric(), task.cases()};
  for (const Candidate& c : candidates) {
    summary.candidates.push_back({c.policy.text(), BudgetText(c.budget)});
  }
  std::vector<CaseResult> results(task.cases());
  for (uint32_t i = 0; i < task.cases(); ++i) {
    for (const Candidate& c : candidates) {
      results[i].push_back(state.Find(named.name, i, CandidateText(c)));
    }
    for (double w : results[i][0]->weights) summary.units += w;
  }
  Summarise(results, task.metric(), 0, seed, &summary.candidates);
  return summary;
}

absl::Status CheckSizes(const EvalOptions& o, const ModelFiles& files) {
  const uint32_t most = files.config.max_context;
  if (o.task.context > most) {
    return Bad(absl::StrCat("--context: ", o.task.context, " exceeds the model's ", most));
  }
  if (o.task.context < std::min(kLeastContext, most)) {
    return Bad(absl::StrCat("--context: ", o.task.context, " is less than ", kLeastContext));
  }
  if (o.tasks.empty()) return Bad("--task: none is given (or use --quick)");
  return absl::OkStatus();
}

TaskSettings SettingsOf(const std::string& name, const EvalOptions& o) {
  TaskSettings settings = o.task;
  const bool generated = settings.file.empty() && name != "perplexity" && name != "recall";
  if (settings.cases == 0 && generated) settings.cases = kGeneratedCases;
  if (settings.hops == 0) settings.hops = name == "chase" ? 64 : 4;
  if (settings.last == 0 && name == "recall") settings.last = kRecallSteps;
  return settings;
}

// "NAME=FILE", each name once.
absl::StatusOr<ChannelSets> LoadSets(const EvalOptions& o, const ModelFiles& files) {
  ChannelSets sets;
  for (const std::string& text : o.channel_sets) {
    const size_t equals = text.find('=');
    const std::string name = text.substr(0, equals);
    if (equals == std::string::npos || name.empty() || sets.contains(name)) {
      return Bad(
          absl::StrCat("--channels-as: \"", text, "\" is no NAME=FILE with a name of its own"));
    }
    auto config =
        ChannelConfig::Load(text.substr(equals + 1), files.config, files.weights->fingerprint());
    if (!config.ok()) return config.status();
    sets[name] = *std::move(config);
  }
  return sets;
}

Session::Options SessionOptions(const EvalOptions& o, const ModelFiles& files,
                                const Tokenizer& tokenizer) {
  return {.max_tokens = o.task.context,
          .threads = o.threads ? o.threads : std::thread::hardware_concurrency(),
          .unit = o.unit,
          .seed = o.task.seed,
          .attention_stride = o.attention_stride,
          .measure_recall = o.measure_recall,
          .kinds = Kinds(tokenizer, files.config.vocab_size)};
}

absl::Status WriteHtml(const std::string& path, const EvalReport& report) {
  const std::time_t now = std::time(nullptr);
  char date[64];
  std::strftime(date, sizeof(date), "%Y-%m-%d %H:%M UTC", std::gmtime(&now));
  return WriteFileAtomically(path, report.ToHtml(date));
}

// Policies see every token that was, and one set of frequencies.
absl::Status CheckFamily(const ModelConfig& config) {
  if (!config.windows.empty()) {
    return Bad(absl::StrCat("config.json: sliding_window ",
                            *std::ranges::max_element(config.windows),
                            ": models with a window are not evaluated in this version"));
  }
  if (config.rope_scaling.kind == RopeScaling::Kind::kLongRope) {
    return Bad("config.json: rope type longrope is not evaluated in this version");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Eval(EvalOptions o) {
  auto files = ModelFiles::Load(o.model_dir, o.channels_file);
  if (!files.ok()) return files.status();
  auto tokenizer = Tokenizer::Load(o.model_dir);
  if (!tokenizer.ok()) return tokenizer.status();
  if (absl::Status s = CheckFamily(files->config); !s.ok()) return s;
  FillIn(&o, files->config);
  auto sets = LoadSets(o, *files);
  if (!sets.ok()) return sets.status();
  if (absl::Status s = CheckSizes(o, *files); !s.ok()) return s;
  auto candidates = Candidates(o, files->channels.has_value());
  if (!candidates.ok()) return candidates.status();
  o.task.files = &*files;
  o.task.tokenizer = tokenizer->get();
  std::vector<NamedTask> tasks;
  for (const std::string& name : o.tasks) {
    if (name == "recall" && candidates->size() == 1) {
      return Bad("--policy: recall needs one that is not dense");
    }
    auto task = MakeTask(name, SettingsOf(name, o));
    if (!task.ok()) return task.status();
    tasks.push_back({name, *std::move(task)});
  }
  EvalReport report;
  auto settings = Settings(o, *files, *sets, *candidates);
  if (!settings.ok()) return settings.status();
  report.settings = *settings;
  Sweep sweep = {.files = &*files,
                 .tokenizer = tokenizer->get(),
                 .tasks = tasks,
                 .candidates = *candidates,
                 .session = SessionOptions(o, *files, **tokenizer),
                 .jobs = o.jobs};
  sweep.session.channel_sets = &*sets;
  for (const Candidate& candidate : *candidates) {
    if (absl::Status s = Session::Check(*files, sweep.session, candidate.policy); !s.ok()) return s;
  }
  auto state = StateFile::Open(o.state_file, StateSettings(report.settings));
  if (!state.ok()) return state.status();
  if (absl::Status s = RunSweep(sweep, state->get()); !s.ok()) return s;
  for (const NamedTask& task : tasks) {
    report.tasks.push_back(SummaryOf(task, *candidates, **state, o.task.seed));
  }
  if (!o.html_file.empty()) {
    if (absl::Status s = WriteHtml(o.html_file, report); !s.ok()) return s;
  }
  std::fputs(o.json ? (report.ToJson().dump() + "\n").c_str() : report.ToText().c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace sparsekv
