#include "cli/eval/session.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "cli/eval/policies/scores.h"
#include "kernels/half.h"

namespace sparsekv {

namespace {

constexpr uint32_t kChunk = 512;

}  // namespace

void AttendCost::Add(const AttendCost& other) {
  steps += other.steps;
  rows += other.rows;
  bytes += other.bytes;
  dense_rows += other.dense_rows;
  dense_bytes += other.dense_bytes;
  selections += other.selections;
  held += other.held;
  looked_at += other.looked_at;
}

Session::Session(const ModelFiles& files, const Options& options)
    : files_(files), options_(options), shapes_(Shapes(files.config)) {}

std::vector<HeadShape> Session::Shapes(const ModelConfig& config) {
  std::vector<HeadShape> shapes;
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    for (uint32_t head = 0; head < config.kv_heads; ++head) {
      shapes.push_back({.layer = layer,
                        .kv_head = head,
                        .head_dim = config.head_dim,
                        .group = config.group(),
                        .value_bytes = static_cast<uint32_t>(SizeOf(config.row_dtype)),
                        .scale = config.attention_scale()});
    }
  }
  return shapes;
}

absl::StatusOr<std::unique_ptr<Session>> Session::Make(const ModelFiles& files,
                                                       const Options& options,
                                                       std::span<const Candidate> candidates) {
  std::unique_ptr<Session> session(new Session(files, options));
  auto runner = LocalRunner::Make(
      files,
      {.max_tokens = options.max_tokens, .chunk_tokens = kChunk, .threads = options.threads});
  if (!runner.ok()) return runner.status();
  session->runner_ = *std::move(runner);
  PromptObserver::Options observe = {
      .stride = options.attention_stride,
      .threads = options.threads ? options.threads : std::thread::hardware_concurrency()};
  const ChannelConfig* guess_channels = nullptr;
  for (const Candidate& candidate : candidates) {
    const PolicySpec& policy = candidate.policy;
    if (absl::Status s = Check(files, options, policy); !s.ok()) return s;
    observe.attention |= policy.needs_attention();
    observe.last_attention |= policy.needs_last_attention();
    if (policy.needs_prediction()) guess_channels = session->ChannelsOf(policy);
  }
  const ModelConfig& config = files.config;
  Backend& backend = session->runner_->model().backend();
  session->observer_.emplace(observe, session->shapes_, config.kv_heads);
  session->attender_.emplace(files.config, &backend, options.max_tokens);
  if (guess_channels) {
    session->guess_channels_ = *guess_channels;  // all of them: whatever a candidate's labels are
    session->guess_channels_->UseChannels(config.head_dim);
    session->guess_.emplace(files, *session->guess_channels_, &backend);
  }
  for (size_t i = 0; i < session->shapes_.size(); ++i) {
    session->keys_.emplace_back(config.head_dim, options.max_tokens);
  }
  return session;
}

const ChannelConfig* Session::ChannelsOf(const ModelFiles& files, const Options& options,
                                         const PolicySpec& policy) {
  if (policy.channel_set().empty()) return files.channel_config();
  if (!options.channel_sets) return nullptr;
  const auto found = options.channel_sets->find(policy.channel_set());
  return found == options.channel_sets->end() ? nullptr : &found->second;
}

absl::Status Session::Check(const ModelFiles& files, const Options& options,
                            const PolicySpec& policy) {
  const ChannelConfig* channels = ChannelsOf(files, options, policy);
  if (!channels && !policy.channel_set().empty()) {
    return absl::InvalidArgumentError(absl::StrCat("--policy ", policy.text(), ": from \"",
                                                   policy.channel_set(),
                                                   "\" is no name that --channels-as gives"));
  }
  return policy.Check(Shapes(files.config)[0], channels);
}

void Session::Start(std::span<const uint32_t> prefix) {
  CHECK_LT(prefix.size(), size_t{options_.max_tokens});
  Model& model = runner_->model();
  model.attention().set_attend_hook(nullptr);
  runner_->Reset();
  running_.clear();
  prefix_ = static_cast<uint32_t>(prefix.size());
  for (KeyHistory& keys : keys_) keys.Truncate(0);
  values_.assign(shapes_.size(), std::vector<double>(files_.config.head_dim));
  kinds_.clear();
  for (uint32_t id : prefix) {
    kinds_.push_back(options_.kinds.empty() ? TokenKind::kOther : options_.kinds[id]);
  }
  observer_->Begin(prefix_);
  model.set_qk_observer([this](uint32_t layer, const float* q, const float*, uint32_t tokens) {
    ObserveChunk(layer, q, tokens);
  });
  for (size_t i = 0; i < prefix.size(); i += kChunk) {
    runner_->Forward(prefix.subspan(i, std::min<size_t>(kChunk, prefix.size() - i)), RowBudget{});
  }
  model.set_qk_observer(nullptr);
  prefix_values_ = values_;
}

// The chunk's rows are written when its queries are seen.
void Session::ObserveChunk(uint32_t layer, const float* q, uint32_t tokens) {
  const uint32_t position = runner_->position(), kv_heads = files_.config.kv_heads;
  AppendRows(layer, runner_->HostRows(layer, 0), position, tokens);
  observer_->Observe(layer, q, position, tokens,
                     std::span(keys_).subspan(size_t{layer} * kv_heads, kv_heads));
}

void Session::AppendRows(uint32_t layer, const RowTable& rows, uint32_t position, uint32_t tokens) {
  const ModelConfig& config = files_.config;
  std::vector<float> key(config.head_dim);
  for (uint32_t h = 0; h < config.kv_heads; ++h) {
    const size_t head = size_t{layer} * config.kv_heads + h;
    CHECK_EQ(keys_[head].tokens(), position);
    for (uint32_t t = position; t < position + tokens; ++t) {
      const std::byte* row = rows.Row(h, t);
      for (uint32_t c = 0; c < config.head_dim; ++c) {
        key[c] = LoadValue(row, c, rows.layout->dtype);
        values_[head][c] += LoadValue(row, config.head_dim + c, rows.layout->dtype);
      }
      keys_[head].Append(key.data());
    }
  }
}

void Session::Rewind() {
  runner_->Rewind(prefix_);
  for (KeyHistory& keys : keys_) keys.Truncate(prefix_);
  kinds_.resize(prefix_);
  values_ = prefix_values_;
  guessed_ = nullptr;
}

Session::Running Session::MakeRunning(const Candidate& candidate) {
  Running running;
  running.candidate = candidate;
  if (candidate.policy.dense()) return running;
  running.heads = candidate.policy.Make(shapes_, ChannelsOf(candidate.policy), options_.seed);
  for (size_t head = 0; head < shapes_.size(); ++head) {
    running.heads[head]->Begin({.keys = &keys_[head],
                                .attention = observer_->attention(head),
                                .last_attention = observer_->last_attention(head),
                                .kinds = &kinds_});
  }
  return running;
}

// The policy that ran last may still know the prefix: then only the steps are forgotten.
bool Session::GoesOn(const Candidate& candidate) {
  if (running_.size() != 1 || running_[0].candidate.policy.text() != candidate.policy.text()) {
    return false;
  }
  for (const std::unique_ptr<HeadPolicy>& head : running_[0].heads) {
    if (!head->Rewind(prefix_)) return false;
  }
  running_[0].candidate = candidate;
  running_[0].cost = {};
  return true;
}

void Session::Begin(const Candidate& candidate) {
  Rewind();
  probe_ = nullptr;
  if (!GoesOn(candidate)) {
    running_.clear();
    running_.push_back(MakeRunning(candidate));
  }
  guessing_ = candidate.policy.needs_prediction();
  if (candidate.policy.dense()) {
    runner_->model().attention().set_attend_hook(nullptr);
    return;
  }
  runner_->model().attention().set_attend_hook(
      [this](uint32_t layer, const StepItem& item, const RowTable& rows, const float* q,
             float* out) { AttendStep(layer, item.position, rows, q, out); });
}

void Session::BeginProbe(std::span<const Candidate> candidates, Probe probe) {
  CHECK(!candidates.empty());
  Begin(candidates[0]);
  running_.clear();
  for (const Candidate& candidate : candidates) {
    running_.push_back(MakeRunning(candidate));
    guessing_ |= candidate.policy.needs_prediction();
  }
  probe_ = std::move(probe);
  runner_->model().attention().set_attend_hook(
      [this](uint32_t layer, const StepItem& item, const RowTable& rows, const float* q,
             float* out) { AttendStep(layer, item.position, rows, q, out); });
}

const float* Session::Step(uint32_t id) {
  if (running_[0].heads.empty() && !probe_) CountDense(running_[0], position(), 1);
  kinds_.push_back(options_.kinds.empty() ? TokenKind::kOther : options_.kinds[id]);
  guessed_ = nullptr;
  runner_->Forward({&id, 1}, RowBudget{});
  for (Running& running : running_) ++running.cost.steps;
  return runner_->Logits(0);
}

void Session::Steps(std::span<const uint32_t> ids,
                    const std::function<void(size_t index, const float* logits)>& seen) {
  if (!running_[0].heads.empty() || probe_) {
    for (size_t i = 0; i < ids.size(); ++i) seen(i, Step(ids[i]));
    return;
  }
  for (size_t from = 0; from < ids.size(); from += kChunk) {
    const auto part = ids.subspan(from, std::min<size_t>(kChunk, ids.size() - from));
    CountDense(running_[0], position(), static_cast<uint32_t>(part.size()));
    running_[0].cost.steps += part.size();
    runner_->Forward(part, RowBudget{});
    for (uint32_t i = 0; i < part.size(); ++i) seen(from + i, runner_->Logits(i));
  }
}

void Session::CountDense(Running& running, uint32_t first, uint32_t tokens) const {
  const uint64_t n = tokens, rows = (n * first + n * (n + 1) / 2) * shapes_.size();
  running.cost.selections += n * shapes_.size();
  running.cost.rows += rows;
  running.cost.dense_rows += rows;
  running.cost.bytes += rows * shapes_[0].row_bytes();
  running.cost.dense_bytes += rows * shapes_[0].row_bytes();
}

uint32_t Session::RowsFor(const RowBudget& budget, const HeadPolicy& policy,
                          uint32_t tokens) const {
  if (options_.unit == BudgetUnit::kRows) return budget.At(tokens);
  const size_t wanted = budget.denominator
                            ? (size_t{tokens} + budget.denominator - 1) / budget.denominator
                            : budget.rows;
  const size_t bytes = wanted * shapes_[0].row_bytes(), index = policy.IndexBytes(tokens);
  const size_t rows = bytes > index ? (bytes - index) / shapes_[0].row_bytes() : 0;
  return static_cast<uint32_t>(std::clamp<size_t>(rows, AlwaysSetSize(tokens), tokens));
}

HeadStep Session::StepOf(const Running& running, size_t head, const float* q) const {
  const HeadShape& shape = shapes_[head];
  const size_t of_group = size_t{shape.kv_head} * shape.group * shape.head_dim;
  return {.q = q,
          .predicted = guessed_ ? guessed_ + of_group : nullptr,
          .keys = &keys_[head],
          .rows = RowsFor(running.candidate.budget, *running.heads[head], keys_[head].tokens())};
}

void Session::Look(uint32_t layer, const float* q) {
  const ModelConfig& config = files_.config;
  const size_t width = size_t{config.group()} * config.head_dim;
  for (Running& running : running_) {
    for (uint32_t h = 0; h < config.kv_heads && !running.heads.empty(); ++h) {
      const size_t head = size_t{layer} * config.kv_heads + h;
      running.heads[head]->Look(StepOf(running, head, q + h * width));
    }
  }
}

void Session::MeasureRecall(Running& running, size_t head, const float* q,
                            const HeadSelection& selection) {
  if (!options_.measure_recall && !running.candidate.policy.adaptive()) return;
  std::vector<float> attention;
  GroupAttention(q, keys_[head], keys_[head].tokens(), shapes_[head], &attention);
  for (uint32_t row : selection.rows) running.cost.held += attention[row];
  ++running.cost.looked_at;
}

void Session::Select(Running& running, size_t head, const float* q, HeadSelection* selection) {
  const HeadShape& shape = shapes_[head];
  const uint32_t tokens = keys_[head].tokens();
  selection->Clear();
  running.heads[head]->Select(StepOf(running, head, q), selection);
  ++running.cost.selections;
  running.cost.rows += selection->rows.size();
  running.cost.bytes += selection->rows.size() * shape.row_bytes() + selection->index_bytes;
  running.cost.dense_rows += tokens;
  running.cost.dense_bytes += tokens * shape.row_bytes();
}

void Session::AttendStep(uint32_t layer, uint32_t position, const RowTable& rows, const float* q,
                         float* out) {
  const ModelConfig& config = files_.config;
  AppendRows(layer, rows, position, 1);
  const size_t width = size_t{config.group()} * config.head_dim;
  HeadSelection selection;
  std::vector<double> mean(config.head_dim);
  Look(layer, q);
  for (uint32_t h = 0; h < config.kv_heads; ++h) {
    const size_t head = size_t{layer} * config.kv_heads + h;
    if (probe_) {
      ShowProbe(head, q + h * width);
      selection.Clear();
      selection.rows.resize(position + 1);
      std::iota(selection.rows.begin(), selection.rows.end(), 0u);
    } else {
      Select(running_[0], head, q + h * width, &selection);
      MeasureRecall(running_[0], head, q + h * width, selection);
    }
    for (uint32_t c = 0; c < config.head_dim; ++c) mean[c] = values_[head][c] / (position + 1);
    attender_->Attend(selection, h, position, rows, q + h * width, mean, out + h * width);
  }
  // The residual stream is still what entered the layer.
  if (guessing_ && layer + 1 < config.layers) {
    guessed_ = guess_->Of(layer + 1, runner_->model().scratch().hidden, position);
  }
}

void Session::ShowProbe(size_t head, const float* q) {
  const HeadShape& shape = shapes_[head];
  std::vector<float> attention;
  GroupAttention(q, keys_[head], keys_[head].tokens(), shape, &attention);
  HeadSelection selection;
  for (size_t i = 0; i < running_.size(); ++i) {
    Select(running_[i], head, q, &selection);
    for (uint32_t row : selection.rows) running_[i].cost.held += attention[row];
    ++running_[i].cost.looked_at;
    probe_({.layer = shape.layer,
            .kv_head = shape.kv_head,
            .attention = attention,
            .candidate = i,
            .rows = selection.rows});
  }
}

}  // namespace sparsekv
