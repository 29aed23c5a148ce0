// `sparsekv calibrate`: which channels of K tell most of a score, per layer and KV head, measured
// on a text with dense attention.
#include <xxhash.h>

#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/local_memory.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "gpu_worker/calibration.h"
#include "gpu_worker/local_runner.h"

namespace sparsekv {

namespace {

struct CalibrateOptions {
  std::string model_dir, text_file, out;
  std::string criterion = "qk";
  std::string pooling = "max-normalised";
  uint32_t channels = 0;
  uint32_t window = 0;
  uint32_t max_tokens = 65536;
  unsigned threads = 0;
};

constexpr uint32_t kChunk = 512;

// The statistic over the text, in windows of `window` tokens; each but the last is full.
ChannelStatistic Measure(LocalRunner& runner, const ModelConfig& config,
                         std::span<const uint32_t> ids, uint32_t window) {
  ChannelStatistic statistic(config);
  runner.model().set_qk_observer([&](uint32_t layer, const float* q, const float* k,
                                     uint32_t tokens) { statistic.Add(layer, q, k, tokens); });
  for (size_t from = 0; from < ids.size(); from += window) {
    const auto part = ids.subspan(from, std::min<size_t>(window, ids.size() - from));
    runner.Reset();
    for (size_t i = 0; i < part.size(); i += kChunk) {
      runner.Forward(part.subspan(i, std::min<size_t>(kChunk, part.size() - i)), RowBudget{});
    }
    spdlog::info("calibrated on {} of {} tokens", from + part.size(), ids.size());
  }
  return statistic;
}

absl::Status RunCalibrate(const CalibrateOptions& o) {
  const auto criterion = ParseCriterion(o.criterion);
  const auto pooling = ParsePooling(o.pooling);
  auto text = ReadInput(o.text_file);
  if (!text.ok()) return text.status();
  auto files = ModelFiles::Load(o.model_dir, "none");
  if (!files.ok()) return files.status();
  auto tokenizer = Tokenizer::Load(o.model_dir);
  if (!tokenizer.ok()) return tokenizer.status();
  auto ids = (*tokenizer)->Encode(*text);
  if (!ids.ok()) return ids.status();
  if (ids->size() > o.max_tokens) ids->resize(o.max_tokens);
  if (ids->empty()) {
    return absl::InvalidArgumentError(absl::StrCat("--text: ", o.text_file, " is empty"));
  }
  const ModelConfig& config = files->config;
  for (uint32_t id : *ids) {
    if (id >= config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tokenizer.json: id ", id, " is not below the vocabulary size ", config.vocab_size));
    }
  }
  ChannelConfig channels;
  channels.layers = config.layers;
  channels.kv_heads = config.kv_heads;
  channels.head_dim = config.head_dim;
  channels.pooling = *pooling;
  channels.criterion = o.criterion;
  channels.text = {.xxh3 = XXH3_64bits(text->data(), text->size()), .tokens = ids->size()};
  const uint32_t count = o.channels ? o.channels : ChannelConfig::DefaultChannels(config.head_dim);
  if (count > config.head_dim) {
    return absl::InvalidArgumentError(
        absl::StrCat("--label-channels: ", count, " is more than head_dim ", config.head_dim));
  }
  const uint32_t window = std::min({o.window ? o.window : config.max_context, config.max_context,
                                    static_cast<uint32_t>(ids->size())});
  if (absl::Status status = CheckLocalMemory(*files, window); !status.ok()) return status;
  auto runner = LocalRunner::Make(
      *files, {.max_tokens = window, .chunk_tokens = kChunk, .threads = o.threads});
  if (!runner.ok()) return runner.status();
  const ChannelStatistic statistic = Measure(**runner, config, *ids, window);
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    for (uint32_t head = 0; head < config.kv_heads; ++head) {
      const auto order = statistic.Order(*criterion, layer, head);
      channels.order.insert(channels.order.end(), order.begin(), order.end());
    }
  }
  channels.UseChannels(count);
  return channels.Save(o.out, files->weights->fingerprint());
}

}  // namespace

void AddCalibrate(CLI::App& app, Command* command) {
  CLI::App* sub = app.add_subcommand("calibrate", "choose label channels on a text");
  auto o = std::make_shared<CalibrateOptions>();
  sub->add_option("--model", o->model_dir, "checkpoint directory")->required();
  sub->add_option("--text", o->text_file, "text like the deployment's, - = stdin")->required();
  sub->add_option("--out", o->out, "channel config to write")->required();
  sub->add_option("--criterion", o->criterion,
                  "qk: mean |q| * mean |k| per KV head; q, k: one of them")
      ->check(CLI::IsMember({"qk", "q", "k"}))
      ->capture_default_str();
  sub->add_option("--pooling", o->pooling, "how the group's query heads become one score")
      ->check(CLI::IsMember({"max-normalised", "sum", "softmax-mass"}))
      ->capture_default_str();
  sub->add_option("--label-channels", o->channels, "per KV head; default max(2, head_dim / 16)");
  sub->add_option("--window", o->window, "tokens of one context; default the model's context");
  sub->add_option("--max-tokens", o->max_tokens, "of the text")
      ->check(CLI::Range(1u, 1u << 30))
      ->capture_default_str();
  sub->add_option("--threads", o->threads, "0 = every core")->check(CLI::Range(0u, 1024u));
  sub->callback([=] { *command = [=] { return RunCalibrate(*o); }; });
}

}  // namespace sparsekv
