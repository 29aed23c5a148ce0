#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "coordinator/tokenizer/model_dir_testing.h"
#include "coordinator/tokenizer/stream_decoder.h"

// Real tokenizers against ids that other programs made, where the optional data are there.
namespace sparsekv::tokenizer {
namespace {

using Ids = std::vector<uint32_t>;

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::stringstream content;
  content << in.rdbuf();
  return content.str();
}

Ids ParseIds(const std::string& line) {
  std::istringstream in(line);
  Ids ids;
  for (uint32_t id; in >> id;) ids.push_back(id);
  return ids;
}

struct Vector {
  std::string text;
  Ids ids;
};

// Texts stand between separator lines; each has one line of ids.
std::vector<Vector> ReadVectors(const std::string& stem) {
  const std::string separator = "\n__ggml_vocab_test__\n";
  const std::string texts = ReadAll(stem + ".inp");
  std::istringstream id_lines(ReadAll(stem + ".out"));
  std::vector<Vector> vectors;
  std::string line;
  for (size_t begin = 0; std::getline(id_lines, line);) {
    const size_t end = texts.find(separator, begin);
    vectors.push_back({texts.substr(begin, end == texts.npos ? end : end - begin), ParseIds(line)});
    begin = end == texts.npos ? texts.size() : end + separator.size();
  }
  return vectors;
}

class RealData : public testing::Test {
 protected:
  void SetUp() override {
    const char* set = getenv("SPARSEKV_DATA");
    data_ = set != nullptr ? set : SPARSEKV_SOURCE_DIR "/../shared/data";
    if (!std::filesystem::exists(data_ + "/tokenizers")) {
      GTEST_SKIP() << "no " << data_ << "/tokenizers (SPARSEKV_DATA names the data directory)";
    }
  }

  std::unique_ptr<Tokenizer> Load(const std::string& model) const {
    auto tokenizer = Tokenizer::Load(data_ + "/" + model);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
  }

  void CheckVectors(const Tokenizer& tokenizer, const std::string& name) const {
    const std::vector<Vector> vectors = ReadVectors(data_ + "/tokenizers/vectors/" + name);
    ASSERT_GT(vectors.size(), 40u);
    for (const Vector& vector : vectors) {
      const Ids ids = EncodePlain(tokenizer, vector.text);
      EXPECT_EQ(ids, vector.ids) << testing::PrintToString(vector.text);
      EXPECT_EQ(tokenizer.Decode(ids, false), vector.text);
      StreamDecoder decoder(tokenizer);
      std::string streamed;
      for (const uint32_t id : ids) streamed += decoder.Push(id);
      EXPECT_EQ(streamed + decoder.Finish(), vector.text);
    }
  }

  std::string data_;
};

TEST_F(RealData, Llama3Vectors) {
  const auto tokenizer = Load("tokenizers/llama3-hf-rebuilt");
  ASSERT_NE(tokenizer, nullptr);
  CheckVectors(*tokenizer, "llama-bpe");
  EXPECT_EQ(tokenizer->Encode("Hello")->front(), 128000u);
  EXPECT_EQ(tokenizer->vocab_size(), 128256u);
}

TEST_F(RealData, Llama2Vectors) {
  const auto tokenizer = Load("tokenizers/llama2-hf");
  ASSERT_NE(tokenizer, nullptr);
  CheckVectors(*tokenizer, "llama-spm");
  EXPECT_EQ(tokenizer->Encode("Hello")->front(), 1u);
  EXPECT_EQ(tokenizer->vocab_size(), 32000u);
}

// Phi-2 is GPT-2's vocabulary and added tokens for runs of blanks; without those it is GPT-2.
TEST_F(RealData, Gpt2Vectors) {
  nlohmann::json document =
      nlohmann::json::parse(ReadAll(data_ + "/tokenizers/phi2-hf/tokenizer.json"));
  document["added_tokens"].erase(document["added_tokens"].begin() + 1,
                                 document["added_tokens"].end());
  ASSERT_EQ(document["added_tokens"][0]["content"], "<|endoftext|>");
  CheckVectors(*ModelDir(document).Load(), "gpt-2");
}

TEST_F(RealData, Phi2KeepsItsAddedTokens) {
  const auto tokenizer = Load("tokenizers/phi2-hf");
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(EncodePlain(*tokenizer, std::string(31, ' ')), Ids{50257});
  EXPECT_EQ(EncodePlain(*tokenizer, "\t\t"), Ids{50294});
  EXPECT_EQ(tokenizer->bos_id(), 50256u);
  EXPECT_EQ(tokenizer->Encode("Hello")->size(), 1u);  // and no BOS
}

TEST_F(RealData, Stories260k) {
  const auto tokenizer = Load("stories260k/hf");
  ASSERT_NE(tokenizer, nullptr);
  const std::string golden = data_ + "/stories260k/golden/";
  const std::pair<std::string, std::string> texts[] = {
      {golden + "bible20k.txt", "bible20k"},
      {data_ + "/texts/tinystories_sample.txt", "tinystories_sample"}};
  for (const auto& [path, name] : texts) {
    const std::string text = ReadAll(path);
    const Ids expected = ParseIds(ReadAll(golden + name + ".ids.txt"));
    ASSERT_GT(expected.size(), 1000u);
    EXPECT_EQ(*tokenizer->Encode(text), expected) << name;
    EXPECT_EQ(tokenizer->Decode(expected, true), text) << name;
  }
}

}  // namespace
}  // namespace sparsekv::tokenizer
