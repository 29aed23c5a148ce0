// `sparsekv inspect DIR`: what a checkpoint is, what it takes, and why it would be refused.
#include "cli/inspect.h"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "base/concat.h"
#include "base/ids.h"
#include "base/json_file.h"
#include "cli/commands.h"
#include "coordinator/chat/model_templates.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "gpu_worker/memory_plan.h"

namespace sparsekv {

namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// What config.json calls itself, whether or not we can compute it.
void DescribeFamily(const std::string& model_dir, ordered_json* report) {
  const auto config = ReadJsonFile(Concat(model_dir, "/config.json"));
  if (!config.ok() || !config->is_object()) return;
  const auto copy = [&](const char* from, const char* to) {
    if (const auto found = config->find(from); found != config->end() && found->is_string()) {
      (*report)[to] = *found;
    }
  };
  const auto names = config->find("architectures");
  if (names != config->end() && names->is_array() && !names->empty() && (*names)[0].is_string()) {
    (*report)["family"] = (*names)[0];
  }
  copy("model_type", "model_type");
  copy("torch_dtype", "stated_type");
  copy("dtype", "stated_type");
  const auto quantisation = config->find("quantization_config");
  if (quantisation == config->end() || !quantisation->is_object()) return;
  const auto method = quantisation->find("quant_method");
  if (method != quantisation->end() && method->is_string()) (*report)["quantisation"] = *method;
}

const char* NameOf(RopeScaling::Kind kind) {
  switch (kind) {
    case RopeScaling::Kind::kNone:
      return "none";
    case RopeScaling::Kind::kLlama3:
      return "llama3";
    case RopeScaling::Kind::kLinear:
      return "linear";
    case RopeScaling::Kind::kYarn:
      return "yarn";
    case RopeScaling::Kind::kLongRope:
      return "longrope";
  }
  return "";
}

// What only some families have: a window (the widest; with the layers that have one), experts.
void DescribeStructure(const ModelConfig& config, ordered_json* described) {
  if (!config.windows.empty()) {
    const auto layers =
        std::ranges::count_if(config.windows, [](uint32_t window) { return window > 0; });
    (*described)["window"] = {{"tokens", *std::ranges::max_element(config.windows)},
                              {"layers", layers}};
  }
  if (config.experts.count > 0) {
    (*described)["experts"] = {{"count", config.experts.count},
                               {"per_token", config.experts.per_token},
                               {"intermediate_size", config.experts.intermediate_size}};
  }
}

ordered_json DescribeConfig(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  ordered_json rope = {{"theta", config.rope_theta}, {"scaling", NameOf(scaling.kind)}};
  if (scaling.factor != 1) rope["factor"] = scaling.factor;
  if (scaling.original_context > 0) rope["original_context"] = scaling.original_context;
  ordered_json described = {{"layers", config.layers},
                            {"hidden_size", config.hidden_size},
                            {"intermediate_size", config.intermediate_size},
                            {"heads", config.heads},
                            {"kv_heads", config.kv_heads},
                            {"head_dim", config.head_dim},
                            {"vocab_size", config.vocab_size},
                            {"context", config.max_context},
                            {"rope", rope},
                            {"tied_embeddings", config.tie_embeddings},
                            {"eos_token_ids", config.eos_ids}};
  DescribeStructure(config, &described);
  return described;
}

ordered_json DescribeChannels(const ModelFiles& files) {
  if (!files.channels) return nullptr;
  const ChannelConfig& channels = *files.channels;
  ordered_json described = {{"channels", channels.channels},
                            {"label_format", Name(channels.label_format)},
                            {"criterion", channels.criterion},
                            {"pooling", Name(channels.pooling)},
                            {"calibration_tokens", channels.text.tokens}};
  const ChannelConfig::Recall& recall = channels.recall;
  if (recall.queries > 0 && !recall.mass.empty()) {
    const double sum = std::accumulate(recall.mass.begin(), recall.mass.end(), 0.0);
    described["recall"] = {{"budget_denominator", recall.budget_denominator},
                           {"context", recall.context},
                           {"mean", sum / static_cast<double>(recall.mass.size())},
                           {"least", *std::ranges::min_element(recall.mass)}};
  }
  return described;
}

ordered_json DescribeTokenizer(const std::string& model_dir, absl::Status* refusal) {
  std::error_code error;
  const bool json = fs::exists(Concat(model_dir, "/tokenizer.json"), error);
  const bool model = fs::exists(Concat(model_dir, "/tokenizer.model"), error);
  ordered_json report = {{"file", json    ? ordered_json("tokenizer.json")
                                  : model ? ordered_json("tokenizer.model")
                                          : ordered_json()}};
  const auto tokenizer = Tokenizer::Load(model_dir);
  if (tokenizer.ok()) {
    report["ids"] = (*tokenizer)->vocab_size();
    report["bos_token_id"] =
        (*tokenizer)->bos_id() ? ordered_json(*(*tokenizer)->bos_id()) : ordered_json();
  } else if (refusal->ok()) {
    *refusal = tokenizer.status();
  }
  return report;
}

ordered_json DescribeChat(const std::string& model_dir) {
  const absl::Status status = chat::ModelTemplates::Load(model_dir).status();
  ordered_json report = {{"template", status.ok()}};
  if (!status.ok()) report["why"] = std::string(status.message());
  return report;
}

// What serve checks of memory with its defaults, on the cpu.
absl::Status CheckPlan(const ModelFiles& files) {
  return MemoryPlan::Make(files.config, files.channel_config(),
                          {.device_bytes = size_t{1} << 30,
                           .max_batch = kMaxBatch,
                           .prefill_unit_tokens = PrefillUnitTokens(false)})
      .status();
}

}  // namespace

Inspection Inspect(const std::string& model_dir) {
  Inspection inspection;
  ordered_json& report = inspection.report;
  report["model"] = model_dir;
  DescribeFamily(model_dir, &report);
  if (const auto config = ModelConfig::Load(model_dir); config.ok()) {
    report.update(DescribeConfig(*config));
  }
  const auto files = ModelFiles::Load(model_dir, "");
  if (files.ok()) {
    report["row_type"] = Name(files->config.row_dtype);
    report["fingerprint"] = HexId(files->weights->fingerprint());
    report["channel_config"] = DescribeChannels(*files);
  }
  inspection.refusal = files.status();
  report["tokenizer"] = DescribeTokenizer(model_dir, &inspection.refusal);
  report["chat"] = DescribeChat(model_dir);
  if (files.ok()) {
    report["memory"] = DescribeMemory(*files);
    if (inspection.refusal.ok()) inspection.refusal = CheckPlan(*files);
  }
  report["refused"] = inspection.refusal.ok()
                          ? ordered_json()
                          : ordered_json(std::string(inspection.refusal.message()));
  return inspection;
}

namespace {

absl::Status RunInspect(const std::string& model_dir, bool json) {
  std::error_code error;
  if (!fs::is_directory(model_dir, error)) {
    return absl::NotFoundError(Concat(model_dir, ": is not a directory"));
  }
  const Inspection inspection = Inspect(model_dir);
  if (json) {
    std::cout << inspection.report.dump(-1, ' ', false, ordered_json::error_handler_t::replace)
              << std::endl;
  } else {
    std::cout << Shown(inspection.report) << std::flush;
  }
  return inspection.refusal;
}

}  // namespace

void AddInspect(CLI::App& app, Command* command) {
  CLI::App* sub = app.add_subcommand(
      "inspect", "what a checkpoint is, what it takes, and why it would be refused");
  struct Options {
    std::string model_dir;
    bool json = false;
  };
  auto o = std::make_shared<Options>();
  sub->add_option("model,--model", o->model_dir, "checkpoint directory")->required();
  sub->add_flag("--json", o->json, "one object on one line");
  sub->callback([=] { *command = [=] { return RunInspect(o->model_dir, o->json); }; });
}

}  // namespace sparsekv
