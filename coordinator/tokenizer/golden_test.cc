// Small tokenizers of every family's construction, and the ids that Hugging Face's packages give
// (tests/golden/tokenizers, written by tests/golden/compare_tokenizers.py).
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/escaping.h"
#include "coordinator/tokenizer/model_dir_testing.h"

namespace sparsekv::tokenizer {
namespace {

using nlohmann::json;
using Ids = std::vector<uint32_t>;

TEST(Golden, IdsAreThoseOfThePackages) {
  size_t tokenizers = 0;
  const std::string folder = SPARSEKV_SOURCE_DIR "/tests/golden/tokenizers";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    SCOPED_TRACE(entry.path().filename());
    const json golden = json::parse(std::ifstream(entry.path()));
    const ModelDir dir;
    for (const auto& [name, content] : golden["files"].items()) {
      std::string bytes = content.dump();
      if (content.is_string()) {
        ASSERT_TRUE(absl::Base64Unescape(content.get<std::string>(), &bytes));
      }
      dir.Write(name, bytes);
    }
    const auto tokenizer = dir.Load();
    ++tokenizers;
    for (const json& one : golden["cases"]) {
      const std::string text = one["text"].get<std::string>();
      EXPECT_EQ(EncodePlain(*tokenizer, text), one["ids"].get<Ids>()) << one["text"];
      EXPECT_EQ(*tokenizer->Encode(text), one["rule"].get<Ids>()) << one["text"];
    }
  }
  EXPECT_GE(tokenizers, 12u);
}

}  // namespace
}  // namespace sparsekv::tokenizer
