// `sparsekv logits`: teacher-forced logits of given ids, computed in this process by the worker's
// own forward pass.
#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "cli/commands.h"
#include "cli/local_memory.h"
#include "cli/npy_writer.h"
#include "gpu_worker/local_runner.h"

namespace sparsekv {

namespace {

struct LogitsOptions {
  std::string model_dir, token_ids, token_ids_file, out;
  std::string mode = "prefill";
  std::string attention = "dense";
  std::string budget = "1/16";
  std::string backend = "auto";
  std::string channels_file;
  unsigned threads = 0;
};

constexpr uint32_t kChunk = 512;  // tokens of one prefill chunk

absl::Status CheckIds(const std::vector<uint32_t>& ids, const ModelConfig& config) {
  if (ids.empty()) return absl::InvalidArgumentError("--token-ids: is empty");
  for (uint32_t id : ids) {
    if (id >= config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--token-ids: ", id, " is not below the vocabulary size ", config.vocab_size));
    }
  }
  if (ids.size() > config.max_context) {
    return absl::InvalidArgumentError(
        absl::StrCat("--token-ids: ", ids.size(), " ids exceed the context ", config.max_context));
  }
  return absl::OkStatus();
}

absl::Status RunLogits(const LogitsOptions& o) {
  auto ids = o.token_ids_file.empty() ? ParseTokenIds(o.token_ids) : ReadTokenIds(o.token_ids_file);
  if (!ids.ok()) return ids.status();
  RowBudget budget;
  const bool select = o.attention == "double-sparsity";
  if (select) {
    absl::Status status = ParseBudget(o.budget, &budget.rows, &budget.denominator);
    if (!status.ok()) return status;
  }
  auto files = ModelFiles::Load(o.model_dir, o.channels_file);
  if (!files.ok()) return files.status();
  if (absl::Status status = CheckIds(*ids, files->config); !status.ok()) return status;
  if (select && !files->channels) {
    return absl::FailedPreconditionError(
        absl::StrCat("--attention double-sparsity: ", o.model_dir, " has no channels.json"));
  }
  const uint32_t chunk = select || o.mode == "decode" ? 1 : kChunk;
  if (absl::Status status = CheckLocalMemory(*files, ids->size()); !status.ok()) return status;
  const BackendKind backend = BackendFor(o.backend, *files);
  auto runner = LocalRunner::Make(
      *files, {.max_tokens = static_cast<uint32_t>(ids->size()),
               .chunk_tokens = chunk,
               .threads = o.threads,
               .backend = backend,
               .rows = {.in_place = backend != BackendKind::kCuda},
               .placement = RowPlacement::kResident,
               .selection = select ? budget.At(static_cast<uint32_t>(ids->size())) : 0});
  if (!runner.ok()) return runner.status();
  auto out = NpyWriter::Create(o.out, static_cast<uint32_t>(ids->size()), files->config.vocab_size);
  if (!out.ok()) return out.status();
  for (size_t from = 0; from < ids->size(); from += chunk) {
    const auto part = std::span(*ids).subspan(from, std::min<size_t>(chunk, ids->size() - from));
    (*runner)->Forward(part, budget);
    for (uint32_t i = 0; i < part.size(); ++i) out->Row((*runner)->Logits(i));
  }
  return out->Close();
}

}  // namespace

void AddLogits(CLI::App& app, Command* command) {
  CLI::App* sub = app.add_subcommand("logits", "teacher-forced logits of ids, as '<f4' .npy");
  auto o = std::make_shared<LogitsOptions>();
  sub->add_option("--model", o->model_dir, "checkpoint directory")->required();
  auto* ids = sub->add_option("--token-ids", o->token_ids, "1,2,3: nothing is added");
  auto* file = sub->add_option("--token-ids-file", o->token_ids_file, "the same from a file");
  ids->excludes(file);
  sub->add_option("--out", o->out, "row i = logits after token i")->required();
  sub->add_option("--mode", o->mode, "chunks of the prompt, or token by token")
      ->check(CLI::IsMember({"prefill", "decode"}))
      ->capture_default_str();
  sub->add_option("--attention", o->attention, "double-sparsity implies decode")
      ->check(CLI::IsMember({"dense", "double-sparsity"}))
      ->capture_default_str();
  sub->add_option("--budget", o->budget, "rows of a selection: K or 1/N")->capture_default_str();
  sub->add_option("--backend", o->backend, "reference is slow and obvious")
      ->check(CLI::IsMember({"auto", "cpu", "cuda", "reference"}))
      ->capture_default_str();
  sub->add_option("--channels", o->channels_file, "default MODEL/channels.json");
  sub->add_option("--threads", o->threads, "0 = every core")->check(CLI::Range(0u, 1024u));
  sub->callback([=] { *command = [=] { return RunLogits(*o); }; });
}

}  // namespace sparsekv
