#include "coordinator/response_stream.h"

#include <gtest/gtest.h>

namespace sparsekv {
namespace {

TEST(MergeResponse, KeepsTheOrderOfTextsIdsAndLogprobs) {
  v1::GenerateResponse merged;
  merged.set_request_id("a");
  merged.set_seed(7);
  for (uint32_t i = 0; i < 3; ++i) {
    v1::GenerateResponse delta;
    delta.set_text(std::string(1, static_cast<char>('x' + i)));
    delta.add_token_ids(i);
    delta.add_logprobs()->mutable_chosen()->set_token_id(i);
    MergeResponse(std::move(delta), &merged);
  }
  v1::GenerateResponse last;
  last.set_finish_reason(v1::FINISH_REASON_STOP);
  last.mutable_usage()->set_completion_tokens(3);
  MergeResponse(std::move(last), &merged);

  EXPECT_EQ(merged.request_id(), "a");
  EXPECT_EQ(merged.seed(), 7u);
  EXPECT_EQ(merged.text(), "xyz");
  ASSERT_EQ(merged.token_ids_size(), 3);
  ASSERT_EQ(merged.logprobs_size(), 3);
  for (uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(merged.token_ids(i), i);
    EXPECT_EQ(merged.logprobs(i).chosen().token_id(), i);
  }
  EXPECT_EQ(merged.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(merged.usage().completion_tokens(), 3u);
}

}  // namespace
}  // namespace sparsekv
