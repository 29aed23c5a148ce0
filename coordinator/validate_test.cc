#include "coordinator/validate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "base/limits.h"

namespace sparsekv {
namespace {

class FakeCodec final : public TextCodec {
 public:
  absl::StatusOr<std::vector<uint32_t>> Encode(std::string_view text, bool bos) const override {
    if (text == "nothing") return std::vector<uint32_t>();
    if (text == "broken") return absl::InvalidArgumentError("cannot be expressed");
    std::vector<uint32_t> ids(bos ? 1 : 0, 1);
    for (unsigned char c : text) ids.push_back(c);
    return ids;
  }
  std::unique_ptr<TextStream> NewCompletion() const override { return nullptr; }
};

ServedModel Model() {
  ServedModel model;
  model.info.set_vocab_size(4096);
  model.info.set_context(4096);
  model.info.set_double_sparsity(true);
  model.info.set_recall_targets(true);
  model.info.set_backend("cpu (test)");
  model.eos_token_ids = {2};
  return model;
}

v1::GenerateRequest Good() {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(5);
  return request;
}

absl::StatusOr<GenerateParams> PrepareIt(const v1::GenerateRequest& request,
                                         const ServedModel& model = Model()) {
  return Prepare(request, model, FakeCodec());
}

TEST(Prepare, FillsInTheDefaults) {
  const auto params = PrepareIt(Good());
  ASSERT_TRUE(params.ok()) << params.status();
  EXPECT_EQ(params->max_new_tokens, 128u);
  EXPECT_EQ(params->temperature, 0);
  EXPECT_EQ(params->top_p, 1);
  EXPECT_EQ(params->top_k, 0u);
  EXPECT_NE(params->seed, 0u);
  EXPECT_EQ(params->attention, v1::ATTENTION_DOUBLE_SPARSITY);
  EXPECT_EQ(params->budget.fraction_denominator(), 16u);
  EXPECT_EQ(params->stop_token_ids, std::vector<uint32_t>{2});
  EXPECT_EQ(params->tokens(), 129u);
}

TEST(Prepare, DenseIsTheDefaultWithoutChannels) {
  ServedModel model = Model();
  model.info.set_double_sparsity(false);
  EXPECT_EQ(PrepareIt(Good(), model)->attention, v1::ATTENTION_DENSE);
  auto request = Good();
  request.set_attention(v1::ATTENTION_DOUBLE_SPARSITY);
  EXPECT_EQ(PrepareIt(request, model).status().code(), absl::StatusCode::kFailedPrecondition);
}

// The budget is then the most that may be taken, and larger when nobody says.
TEST(Prepare, RecallTargets) {
  EXPECT_EQ(PrepareIt(Good())->recall_target, 0);
  auto request = Good();
  request.set_recall_target(0.98);
  EXPECT_EQ(PrepareIt(request)->recall_target, 0.98);
  EXPECT_EQ(PrepareIt(request)->budget.fraction_denominator(), 4u);
  request.mutable_budget()->set_rows(300);
  EXPECT_EQ(PrepareIt(request)->budget.rows(), 300u);

  ServedModel model = Model();
  model.info.set_recall_targets(false);
  model.info.set_backend("cuda");
  const absl::Status status = PrepareIt(request, model).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(), "recall_target: is not in this version of backend cuda");
  model.info.set_double_sparsity(false);
  EXPECT_EQ(PrepareIt(request, model).status().message(),
            "recall_target: 0.98 needs attention double-sparsity");
}

TEST(Prepare, TakesWhatTheRequestSays) {
  auto request = Good();
  request.set_text("ab");
  request.set_max_new_tokens(4093);
  request.set_temperature(100);
  request.set_top_p(0.25);
  request.set_seed(0);
  request.set_ignore_eos(true);
  request.set_attention(v1::ATTENTION_DENSE);
  request.mutable_budget()->set_rows(1);
  request.set_logprobs(20);
  for (uint32_t i = 0; i < kMaxStopStrings; ++i) request.add_stop(std::string(kMaxStopBytes, 's'));
  const auto params = PrepareIt(request);
  ASSERT_TRUE(params.ok()) << params.status();
  EXPECT_EQ(params->prompt_ids, (std::vector<uint32_t>{1, 'a', 'b'}));
  EXPECT_EQ(params->seed, 0u);
  EXPECT_TRUE(params->stop_token_ids.empty());
  EXPECT_EQ(params->attention, v1::ATTENTION_DENSE);
  EXPECT_EQ(params->budget.rows(), 1u);
}

TEST(ValidateRequestId, BoundsItsBytes) {
  EXPECT_TRUE(ValidateRequestId("").ok());
  EXPECT_TRUE(ValidateRequestId(std::string(kMaxRequestIdBytes, 'x')).ok());
  EXPECT_EQ(ValidateRequestId(std::string(kMaxRequestIdBytes + 1, 'x')).message(),
            "request_id: 129 bytes are over 128");
  EXPECT_EQ(ValidateRequestId("a\xff").message(), "request_id: is not UTF-8");
}

struct BadInput {
  const char* name;
  std::function<void(v1::GenerateRequest&)> spoil;
  const char* message;
};

class PrepareRefuses : public ::testing::TestWithParam<BadInput> {};

TEST_P(PrepareRefuses, AndNamesTheField) {
  auto request = Good();
  GetParam().spoil(request);
  const absl::Status status = PrepareIt(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()), GetParam().message);
}

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInfinity = std::numeric_limits<float>::infinity();
using Request = v1::GenerateRequest;

const BadInput kBadInputs[] = {
    {"NoPrompt", [](Request& r) { r.clear_prompt(); }, "prompt: neither text nor token_ids is set"},
    {"RecallOfNothing", [](Request& r) { r.set_recall_target(0); },
     "recall_target: 0 is not within (0, 1)"},
    {"RecallOfAll", [](Request& r) { r.set_recall_target(1); },
     "recall_target: 1 is not within (0, 1)"},
    {"RecallNan", [](Request& r) { r.set_recall_target(kNan); },
     "recall_target: nan is not within (0, 1)"},
    {"RecallOfDense",
     [](Request& r) {
       r.set_attention(v1::ATTENTION_DENSE);
       r.set_recall_target(0.5);
     },
     "recall_target: 0.5 needs attention double-sparsity"},
    {"EmptyText", [](Request& r) { r.set_text(""); }, "prompt: is empty"},
    {"EmptyIds", [](Request& r) { r.mutable_token_ids()->clear_ids(); }, "prompt: is empty"},
    {"NoTokens", [](Request& r) { r.set_text("nothing"); }, "prompt.text: yields no tokens"},
    {"BadText", [](Request& r) { r.set_text("broken"); }, "prompt.text: cannot be expressed"},
    {"IdOverVocabulary",
     [](Request& r) {
       r.mutable_token_ids()->add_ids(4095);
       r.mutable_token_ids()->add_ids(4);
       r.mutable_token_ids()->add_ids(70000);
     },
     "token_ids.ids[3]: 70000 is not below the vocabulary size 4096"},
    {"OverContext",
     [](Request& r) {
       for (int i = 0; i < 99; ++i) r.mutable_token_ids()->add_ids(1);
       r.set_max_new_tokens(5000);
     },
     "max_new_tokens: prompt 100 + 5000 exceed the context 4096"},
    {"FarOverContext", [](Request& r) { r.set_max_new_tokens(UINT32_MAX); },
     "max_new_tokens: prompt 1 + 4294967295 exceed the context 4096"},
    {"TextOverContext", [](Request& r) { r.set_text(std::string(4000, 'x')); },
     "max_new_tokens: prompt 4001 + 128 exceed the context 4096"},
    {"NegativeTemperature", [](Request& r) { r.set_temperature(-0.5); },
     "temperature: -0.5 is not within 0 .. 100"},
    {"HighTemperature", [](Request& r) { r.set_temperature(101); },
     "temperature: 101 is not within 0 .. 100"},
    {"NanTemperature", [](Request& r) { r.set_temperature(kNan); },
     "temperature: nan is not within 0 .. 100"},
    {"InfiniteTemperature", [](Request& r) { r.set_temperature(kInfinity); },
     "temperature: inf is not within 0 .. 100"},
    {"ZeroTopP", [](Request& r) { r.set_top_p(0); }, "top_p: 0 is not within (0, 1]"},
    {"HighTopP", [](Request& r) { r.set_top_p(1.5); }, "top_p: 1.5 is not within (0, 1]"},
    {"NanTopP", [](Request& r) { r.set_top_p(kNan); }, "top_p: nan is not within (0, 1]"},
    {"Logprobs", [](Request& r) { r.set_logprobs(21); }, "logprobs: 21 is over 20"},
    {"ManyStops",
     [](Request& r) {
       for (int i = 0; i < 17; ++i) r.add_stop("x");
     },
     "stop: 17 strings are over 16"},
    {"EmptyStop",
     [](Request& r) {
       r.add_stop("x");
       r.add_stop("");
     },
     "stop[1]: is empty"},
    {"LongStop", [](Request& r) { r.add_stop(std::string(257, 'x')); },
     "stop[0]: 257 bytes are over 256"},
    {"ZeroRows", [](Request& r) { r.mutable_budget()->set_rows(0); },
     "budget.rows: 0 is not at least 1"},
    {"ZeroDenominator", [](Request& r) { r.mutable_budget()->set_fraction_denominator(0); },
     "budget.fraction_denominator: 0 is not at least 1"},
    {"Attention", [](Request& r) { r.set_attention(static_cast<v1::Attention>(7)); },
     "attention: 7 is not known"},
};

INSTANTIATE_TEST_SUITE_P(Fields, PrepareRefuses, ::testing::ValuesIn(kBadInputs),
                         [](const auto& bad) { return bad.param.name; });

}  // namespace
}  // namespace sparsekv
