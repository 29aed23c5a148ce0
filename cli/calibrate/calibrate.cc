#include "cli/calibrate/calibrate.h"

#include <xxhash.h>

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cli/calibrate/text_pass.h"
#include "cli/commands.h"
#include "cli/local_memory.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "gpu_worker/calibration.h"
#include "gpu_worker/calibration_published.h"

namespace sparsekv {

namespace {

constexpr uint32_t kDenominators[] = {16, 32};  // of the budgets that recall is measured at
constexpr uint32_t kStatisticQueries = 128;     // sampled of each context
// Recall is of queries that have at least half of the context before them.
constexpr uint32_t kJudgedShare = 2;

struct Text {
  std::vector<uint32_t> calibration, held_out;
  uint64_t xxh3 = 0;
  uint32_t context = 0, held_out_context = 0;
};

absl::Status Refuse(const std::string& what) { return absl::InvalidArgumentError(what); }

absl::StatusOr<Text> ReadText(const CalibrateOptions& o, const ModelConfig& config) {
  auto bytes = ReadInput(o.text_file);
  if (!bytes.ok()) return bytes.status();
  auto tokenizer = Tokenizer::Load(o.model_dir);
  if (!tokenizer.ok()) return tokenizer.status();
  auto ids = (*tokenizer)->Encode(*bytes);
  if (!ids.ok()) return ids.status();
  if (ids->size() > o.max_tokens) ids->resize(o.max_tokens);
  if (ids->empty()) return Refuse(absl::StrCat("--text: ", o.text_file, " is empty"));
  for (uint32_t id : *ids) {
    if (id >= config.vocab_size) {
      return Refuse(absl::StrCat("tokenizer.json: id ", id, " is not below the vocabulary size ",
                                 config.vocab_size));
    }
  }
  Text text;
  text.xxh3 = XXH3_64bits(bytes->data(), bytes->size());
  if (o.context > config.max_context) {
    return Refuse(
        absl::StrCat("--context: ", o.context, " is more than the model's ", config.max_context));
  }
  const auto tokens = static_cast<uint32_t>(ids->size());
  const uint32_t context = o.context ? o.context : config.max_context;
  // A whole context where there is text for one.
  const auto share = static_cast<uint32_t>(o.held_out * tokens);
  const uint32_t held = o.held_out > 0 ? std::max(share, std::min(context, tokens / 2)) : 0;
  constexpr uint32_t kLeast = 2 * (kSinkTokens + kRecentTokens + 1);
  if (o.held_out > 0 && held < kLeast) {
    return Refuse(absl::StrCat("--text: of ", tokens, " tokens too few are left to measure on (",
                               held, " of at least ", kLeast, "); --held-out 0 measures nothing"));
  }
  text.calibration.assign(ids->begin(), ids->end() - held);
  text.held_out.assign(ids->end() - held, ids->end());
  text.context = std::min(context, static_cast<uint32_t>(text.calibration.size()));
  text.held_out_context = std::min(context, held);
  // What does not fill a context has too few queries with much before them.
  if (held > 0) text.held_out.resize(held - held % text.held_out_context);
  return text;
}

// The orders of every criterion that is asked for, [criteria][layers, kv_heads, head_dim].
std::vector<std::vector<uint16_t>> MeasureOrders(LocalRunner& runner, const Text& text,
                                                 std::span<const ChannelCriterion> criteria,
                                                 unsigned threads) {
  const ModelConfig& config = runner.model().config();
  const bool published = std::ranges::any_of(criteria, &ChannelCriterion::published);
  const bool own = !std::ranges::all_of(criteria, &ChannelCriterion::published);
  ChannelStatistic statistic(config);
  if (own) {
    TextPass pass({"calibrating", text.context, kStatisticQueries, 1, threads});
    pass.Run(
        runner, text.calibration,
        [&](uint32_t layer, const float* q, const float* k, uint32_t tokens) {
          statistic.Add(layer, q, k, tokens);
        },
        [&](const HeadSample& sample) { statistic.AddSample(sample); });
  }
  const uint32_t longest = std::max({text.context, text.held_out_context});
  PublishedStatistic script(config, config.InverseFrequency(config.long_rope(longest)));
  if (published) {
    // Whole blocks only, where there is one.
    constexpr size_t kBlock = PublishedStatistic::kBlockTokens;
    const size_t all = text.calibration.size();
    const auto blocks = std::span(text.calibration).first(all < kBlock ? all : all - all % kBlock);
    TextPass pass({"calibrating as published", kBlock, 0, 1, threads});
    pass.Run(
        runner, blocks,
        [&](uint32_t layer, const float* q, const float* k, uint32_t tokens) {
          script.Add(layer, q, k, tokens);
        },
        nullptr);
  }
  std::vector<std::vector<uint16_t>> orders;
  for (ChannelCriterion criterion : criteria) {
    std::vector<uint16_t>& all = orders.emplace_back();
    for (uint32_t layer = 0; layer < config.layers; ++layer) {
      if (criterion.published()) {
        const auto order = script.Orders(criterion.worth, layer);
        all.insert(all.end(), order.begin(), order.end());
        continue;
      }
      for (uint32_t head = 0; head < config.kv_heads; ++head) {
        const auto order = statistic.Order(criterion, layer, head);
        all.insert(all.end(), order.begin(), order.end());
      }
    }
  }
  return orders;
}

// The chosen criterion first, as it will be used, then what it is compared with.
std::vector<LabelChoice> Choices(const ChannelConfig& used, size_t criteria, bool compare) {
  std::vector<LabelChoice> choices = {{0, used.channels, used.label_format}};
  for (size_t order = 0; compare && order < criteria; ++order) {
    for (LabelFormat format : kLabelFormats) {
      for (uint32_t share : {32u, 16u, 8u, 4u}) {
        const uint32_t count = used.head_dim / share;
        if (count > 0) choices.push_back({order, count, format});
      }
    }
  }
  return choices;
}

void MeasureRecall(LocalRunner& runner, const Text& text, const CalibrateOptions& o,
                   unsigned threads, std::vector<std::vector<uint16_t>> orders, Calibration& out) {
  ChannelConfig& channels = out.channels;
  RecallMeter::Options options = {
      .orders = std::move(orders),
      .choices = Choices(channels, out.criteria.size(), o.compare),
      .denominators = {std::begin(kDenominators), std::end(kDenominators)},
      .pooling = o.pooling};
  out.meter.emplace(runner.model().config(), std::move(options));
  TextPass pass(
      {"measuring on held-out text", text.held_out_context, o.queries, kJudgedShare, threads});
  pass.Run(runner, text.held_out, nullptr, [&](const HeadSample& s) { out.meter->Add(s); });
  out.held_out_tokens = static_cast<uint32_t>(text.held_out.size());
  out.held_out_context = text.held_out_context;
  channels.recall = {.budget_denominator = kDenominators[0],
                     .context = text.held_out_context,
                     .queries = static_cast<uint32_t>(out.meter->queries()),
                     .mass = out.meter->PerHead(0, 0)};
}

}  // namespace

absl::StatusOr<Calibration> Calibrate(const CalibrateOptions& o) {
  auto files = ModelFiles::Load(o.model_dir, "none");
  if (!files.ok()) return files.status();
  const ModelConfig& config = files->config;
  const uint32_t count =
      o.channels ? o.channels : ChannelConfig::DefaultChannels(config.head_dim, o.label_format);
  if (count > config.head_dim) {
    return Refuse(
        absl::StrCat("--label-channels: ", count, " is more than head_dim ", config.head_dim));
  }
  const auto text = ReadText(o, config);
  if (!text.ok()) return text.status();
  // A context of the published script may be longer than the text's.
  const uint32_t room = std::max({text->context, text->held_out_context,
                                  std::min(PublishedStatistic::kBlockTokens, config.max_context)});
  if (absl::Status status = CheckLocalMemory(*files, room); !status.ok()) return status;
  auto runner = LocalRunner::Make(
      *files, {.max_tokens = room, .chunk_tokens = TextPass::kChunk, .threads = o.threads});
  if (!runner.ok()) return runner.status();

  Calibration result;
  result.model = o.model_dir;
  result.fingerprint = files->weights->fingerprint();
  result.criteria = {o.criterion};
  if (o.compare) {
    for (ChannelCriterion c : ComparedCriteria()) {
      if (c != o.criterion) result.criteria.push_back(c);
    }
  }
  const unsigned threads =
      o.threads ? o.threads : std::max(1u, std::thread::hardware_concurrency());
  auto orders = MeasureOrders(**runner, *text, result.criteria, threads);
  ChannelConfig& channels = result.channels;
  channels.layers = config.layers;
  channels.kv_heads = config.kv_heads;
  channels.head_dim = config.head_dim;
  channels.pooling = o.pooling;
  channels.criterion = Name(o.criterion);
  channels.text = {.xxh3 = text->xxh3, .tokens = text->calibration.size()};
  channels.context = text->context;
  channels.order = orders[0];
  channels.label_format = o.label_format;
  channels.UseChannels(count);
  if (!text->held_out.empty()) {
    MeasureRecall(**runner, *text, o, threads, std::move(orders), result);
  }
  return result;
}

}  // namespace sparsekv
