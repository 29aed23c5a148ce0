#include "cli/eval/case_runner.h"

#include <algorithm>
#include <cmath>

#include "cli/eval/policies/scores.h"

namespace sparsekv {

namespace {

constexpr size_t kUnitTokens = 128;  // of a window

uint32_t Greedy(const float* logits, uint32_t vocab) {
  return static_cast<uint32_t>(std::max_element(logits, logits + vocab) - logits);
}

double NegativeLogLikelihood(const float* logits, uint32_t vocab, uint32_t target) {
  const double max = *std::max_element(logits, logits + vocab);
  double mass = 0;
  for (uint32_t i = 0; i < vocab; ++i) mass += std::exp(logits[i] - max);
  return max + std::log(mass) - logits[target];
}

void Likelihood(Session& session, const Question& question, std::vector<double>* sums) {
  session.Steps(question.ids, [&](size_t i, const float* logits) {
    (*sums)[i / kUnitTokens] +=
        NegativeLogLikelihood(logits, session.config().vocab_size, question.targets[i]);
  });
}

const float* Ask(Session& session, const Question& question) {
  const float* last = nullptr;
  for (uint32_t id : question.ids) last = session.Step(id);
  return last;
}

double Generate(Session& session, const Tokenizer& tokenizer, const Question& question) {
  const ModelConfig& config = session.config();
  const float* logits = Ask(session, question);
  std::vector<uint32_t> made;
  while (made.size() < question.max_new_tokens) {
    const uint32_t id = Greedy(logits, config.vocab_size);
    if (std::ranges::binary_search(config.eos_ids, id)) break;
    made.push_back(id);
    if (made.size() < question.max_new_tokens) logits = session.Step(id);
  }
  return Score(question.scoring, tokenizer.Decode(made, true), question.answers, question.classes);
}

double Choose(Session& session, const Question& question) {
  const float* logits = Ask(session, question);
  uint32_t best = 0;
  for (uint32_t i = 1; i < question.choices.size(); ++i) {
    if (logits[question.choices[i]] > logits[question.choices[best]]) best = i;
  }
  return best == question.right;
}

// The share of the targets that come out before the first wrong one.
double Chase(Session& session, const Question& question) {
  const float* logits = Ask(session, question);
  size_t right = 0;
  while (right < question.targets.size()) {
    const uint32_t id = Greedy(logits, session.config().vocab_size);
    if (id != question.targets[right]) break;
    if (++right < question.targets.size()) logits = session.Step(id);
  }
  return static_cast<double>(right) / static_cast<double>(question.targets.size());
}

double Answer(Session& session, const Tokenizer& tokenizer, const Question& question) {
  if (question.kind == Question::Kind::kChoice) return Choose(session, question);
  if (question.kind == Question::Kind::kChase) return Chase(session, question);
  return Generate(session, tokenizer, question);
}

std::vector<double> UnitsOf(const TaskCase& task) {
  const Question& first = task.questions[0];
  if (first.kind == Question::Kind::kRecall) return {static_cast<double>(first.ids.size())};
  if (first.kind != Question::Kind::kLikelihood) {
    return {static_cast<double>(task.questions.size())};
  }
  std::vector<double> units;
  for (size_t i = 0; i < first.ids.size(); i += kUnitTokens) {
    units.push_back(static_cast<double>(std::min(kUnitTokens, first.ids.size() - i)));
  }
  return units;
}

// Dense attention captures itself.
void CapturesAll(double steps, size_t heads, CandidateResult* result) {
  result->captured.assign(heads, steps);
  result->overlap.assign(heads, steps);
  result->sums.back() = steps;
  result->cost.rows = result->cost.dense_rows;
  result->cost.bytes = result->cost.dense_bytes;
  result->cost.held = static_cast<double>(result->cost.looked_at);
}

// All candidates look at the same dense steps.  REQUIRES: one of them is not dense.
void Recall(Session& session, const TaskCase& task, std::span<const Candidate> candidates,
            const CandidateDone& done) {
  const ModelConfig& config = session.config();
  const size_t heads = size_t{config.layers} * config.kv_heads;
  const Question& question = task.questions[0];
  std::vector<CandidateResult> results(candidates.size());
  std::vector<Candidate> sparse;
  std::vector<size_t> index;
  for (size_t i = 0; i < candidates.size(); ++i) {
    results[i].weights = UnitsOf(task);
    results[i].sums.assign(results[i].weights.size(), 0);
    results[i].captured.assign(heads, 0);
    results[i].overlap.assign(heads, 0);
    if (candidates[i].policy.dense()) continue;
    sparse.push_back(candidates[i]);
    index.push_back(i);
  }
  const double share = 1.0 / static_cast<double>(heads);
  session.BeginProbe(sparse, [&](const Session::ProbeView& view) {
    double captured = 0;
    for (uint32_t row : view.rows) captured += view.attention[row];
    const auto best = TopRows(view.attention, static_cast<uint32_t>(view.rows.size()), 0, 0);
    std::vector<uint32_t> common;
    std::ranges::set_intersection(best, view.rows, std::back_inserter(common));
    const size_t head = size_t{view.layer} * config.kv_heads + view.kv_head;
    CandidateResult& result = results[index[view.candidate]];
    result.captured[head] += captured;
    result.overlap[head] += static_cast<double>(common.size()) / static_cast<double>(best.size());
    result.sums.back() += captured * share;
  });
  for (uint32_t id : question.ids) session.Step(id);
  for (size_t i = 0; i < sparse.size(); ++i) results[index[i]].cost = session.cost(i);
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (candidates[i].policy.dense()) {
      results[i].cost = session.cost(0);
      CapturesAll(static_cast<double>(question.ids.size()), heads, &results[i]);
    }
    done(i, std::move(results[i]));
  }
}

}  // namespace

void RunCase(Session& session, const Tokenizer& tokenizer, const TaskCase& task,
             std::span<const Candidate> candidates, const CandidateDone& done) {
  const Question::Kind kind = task.questions[0].kind;
  session.Start(task.prefix);
  if (kind == Question::Kind::kRecall) {
    Recall(session, task, candidates, done);
    return;
  }
  for (size_t i = 0; i < candidates.size(); ++i) {
    CandidateResult result;
    result.weights = UnitsOf(task);
    result.sums.assign(result.weights.size(), 0);
    for (const Question& question : task.questions) {
      session.Begin(candidates[i]);
      if (kind == Question::Kind::kLikelihood) {
        Likelihood(session, question, &result.sums);
      } else {
        result.sums[0] += Answer(session, tokenizer, question);
      }
      result.cost.Add(session.cost());
    }
    done(i, std::move(result));
  }
}

nlohmann::ordered_json CandidateResult::ToJson() const {
  nlohmann::ordered_json json = {{"weights", weights},
                                 {"sums", sums},
                                 {"cost",
                                  {cost.steps, cost.rows, cost.bytes, cost.dense_rows,
                                   cost.dense_bytes, cost.selections, cost.held, cost.looked_at}}};
  if (!captured.empty()) {
    json["captured"] = captured;
    json["overlap"] = overlap;
  }
  return json;
}

absl::StatusOr<CandidateResult> CandidateResult::FromJson(const nlohmann::json& json) {
  try {
    CandidateResult result;
    json.at("weights").get_to(result.weights);
    json.at("sums").get_to(result.sums);
    const auto& c = json.at("cost");
    result.cost = {c.at(0), c.at(1), c.at(2), c.at(3), c.at(4), c.at(5), c.at(6), c.at(7)};
    if (json.contains("captured")) {
      json.at("captured").get_to(result.captured);
      json.at("overlap").get_to(result.overlap);
    }
    if (result.sums.size() != result.weights.size() || result.sums.empty()) {
      return absl::InvalidArgumentError("sums are not as many as weights");
    }
    return result;
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(error.what());
  }
}

}  // namespace sparsekv
