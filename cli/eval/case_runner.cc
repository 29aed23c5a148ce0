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

// All candidates look at the same dense steps.
void Recall(Session& session, const Question& question, std::span<const Candidate> candidates,
            CaseResult* result) {
  const ModelConfig& config = session.config();
  const size_t heads = size_t{config.layers} * config.kv_heads;
  result->captured.assign(candidates.size(), std::vector<double>(heads));
  result->overlap = result->captured;
  std::vector<Candidate> sparse;
  std::vector<size_t> index;
  for (size_t i = 0; i < candidates.size(); ++i) {
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
    const size_t candidate = index[view.candidate];
    result->captured[candidate][head] += captured;
    result->overlap[candidate][head] +=
        static_cast<double>(common.size()) / static_cast<double>(best.size());
    result->sums[candidate].back() += captured * share;
  });
  for (uint32_t id : question.ids) session.Step(id);
  for (size_t i = 0; i < sparse.size(); ++i) result->costs[index[i]] = session.cost(i);
  // Dense attention captures itself.
  const auto steps = static_cast<double>(question.ids.size());
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (!candidates[i].policy.dense()) continue;
    result->captured[i].assign(heads, steps);
    result->overlap[i].assign(heads, steps);
    result->sums[i].back() = steps;
    AttendCost& cost = result->costs[i];
    cost = session.cost(0);
    cost.rows = cost.dense_rows;
    cost.bytes = cost.dense_bytes;
    cost.held = static_cast<double>(cost.looked_at);
  }
}

}  // namespace

CaseResult RunCase(Session& session, const Tokenizer& tokenizer, const TaskCase& task,
                   std::span<const Candidate> candidates) {
  const Question& first = task.questions[0];
  const bool likelihood = first.kind == Question::Kind::kLikelihood;
  CaseResult result;
  if (likelihood) {
    for (size_t i = 0; i < first.ids.size(); i += kUnitTokens) {
      result.weights.push_back(static_cast<double>(std::min(kUnitTokens, first.ids.size() - i)));
    }
  } else if (first.kind == Question::Kind::kRecall) {
    result.weights = {static_cast<double>(first.ids.size())};
  } else {
    result.weights = {static_cast<double>(task.questions.size())};
  }
  result.sums.assign(candidates.size(), std::vector<double>(result.weights.size()));
  result.costs.resize(candidates.size());
  session.Start(task.prefix);
  if (first.kind == Question::Kind::kRecall) {
    Recall(session, first, candidates, &result);
    return result;
  }
  for (size_t i = 0; i < candidates.size(); ++i) {
    for (const Question& question : task.questions) {
      session.Begin(candidates[i]);
      if (likelihood) {
        Likelihood(session, question, &result.sums[i]);
      } else {
        result.sums[i][0] += Answer(session, tokenizer, question);
      }
      result.costs[i].Add(session.cost());
    }
  }
  return result;
}

nlohmann::ordered_json CaseResult::ToJson() const {
  nlohmann::ordered_json json = {{"weights", weights}, {"sums", sums}};
  for (const AttendCost& c : costs) {
    json["costs"].push_back(
        {c.steps, c.rows, c.bytes, c.dense_rows, c.dense_bytes, c.selections, c.held, c.looked_at});
  }
  if (!captured.empty()) {
    json["captured"] = captured;
    json["overlap"] = overlap;
  }
  return json;
}

absl::StatusOr<CaseResult> CaseResult::FromJson(const nlohmann::json& json) {
  try {
    CaseResult result;
    json.at("weights").get_to(result.weights);
    json.at("sums").get_to(result.sums);
    for (const auto& c : json.at("costs")) {
      result.costs.push_back(
          {c.at(0), c.at(1), c.at(2), c.at(3), c.at(4), c.at(5), c.at(6), c.at(7)});
    }
    if (json.contains("captured")) {
      json.at("captured").get_to(result.captured);
      json.at("overlap").get_to(result.overlap);
    }
    return result;
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(error.what());
  }
}

}  // namespace sparsekv
