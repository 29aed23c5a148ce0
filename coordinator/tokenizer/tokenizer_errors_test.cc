#include <gtest/gtest.h>
#include <sys/stat.h>

#include <functional>

#include "base/json_file.h"
#include "coordinator/tokenizer/model_dir_testing.h"

namespace sparsekv::tokenizer {
namespace {

using nlohmann::json;

// The error without the directory's name, after a change to a good file.
std::string ErrorAfter(const std::function<void(json&)>& change,
                       const json& good = ByteFallbackJson({{"▁", "t"}})) {
  json document = good;
  change(document);
  const ModelDir dir(document);
  const std::string error = dir.LoadError();
  EXPECT_EQ(error.find(dir.path() + "/"), 0u) << error;
  EXPECT_EQ(error.find('\n'), error.npos) << error;
  return error.substr(dir.path().size() + 1);
}

std::string ErrorOfText(std::string_view text) {
  const ModelDir dir(json::object());
  dir.Write("tokenizer.json", text);
  return dir.LoadError().substr(dir.path().size() + 1);
}

TEST(TokenizerErrors, TypesThatAreNotUnderstood) {
  const json foo = {{"type", "Foo"}};
  EXPECT_EQ(ErrorAfter([&](json& j) { j["normalizer"] = foo; }),
            "tokenizer.json: normalizer.type \"Foo\" is not supported");
  EXPECT_EQ(ErrorAfter([&](json& j) { j["normalizer"]["normalizers"][1] = foo; }),
            "tokenizer.json: normalizer.normalizers[1].type \"Foo\" is not supported");
  EXPECT_EQ(ErrorAfter([&](json& j) { j["pre_tokenizer"] = foo; }),
            "tokenizer.json: pre_tokenizer.type \"Foo\" is not supported");
  EXPECT_EQ(ErrorAfter([&](json& j) { j["decoder"]["decoders"][0] = foo; }),
            "tokenizer.json: decoder.decoders[0].type \"Foo\" is not supported");
  EXPECT_EQ(ErrorAfter([&](json& j) { j["post_processor"] = foo; }),
            "tokenizer.json: post_processor.type \"Foo\" is not supported");
  EXPECT_EQ(ErrorAfter([&](json& j) { j["model"]["type"] = "Unigram"; }),
            "tokenizer.json: model.type \"Unigram\" is not supported");
  EXPECT_EQ(ErrorAfter([&](json& j) { j["normalizer"]["type"] = "a\nb"; }),
            "tokenizer.json: normalizer.type \"a\\nb\" is not supported");
}

TEST(TokenizerErrors, ValuesThatAreNotUnderstood) {
  EXPECT_EQ(ErrorAfter([](json& j) { j["model"]["dropout"] = 0.1; }),
            "tokenizer.json: model.dropout 0.1 is not supported");
  EXPECT_EQ(ErrorAfter([](json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }),
            "tokenizer.json: model.end_of_word_suffix \"</w>\" is not supported");
  EXPECT_EQ(ErrorAfter([](json& j) { j["decoder"] = nullptr; }),
            "tokenizer.json: decoder null is not supported");
  EXPECT_EQ(ErrorAfter([](json& j) { j["decoder"]["decoders"][3]["stop"] = 1; }),
            "tokenizer.json: decoder.decoders[3].stop 1 is not supported");
  EXPECT_EQ(ErrorAfter([](json& j) {
              std::swap(j["decoder"]["decoders"][0], j["decoder"]["decoders"][1]);
            }),
            "tokenizer.json: decoder.decoders[1].type \"Replace\" in this place is not supported");
  EXPECT_EQ(ErrorAfter([](json& j) {
              j["normalizer"]["normalizers"][1]["pattern"] = {{"Regex", "(x"}};
            }),
            "tokenizer.json: normalizer.normalizers[1].pattern.Regex \"(x\": missing closing "
            "parenthesis (at byte 2)");
  EXPECT_EQ(ErrorAfter([](json& j) {
              j["post_processor"]["single"].push_back(j["post_processor"]["single"][1]);
            }),
            "tokenizer.json: post_processor.single[2].Sequence.id \"A\" is not supported");
  EXPECT_EQ(
      ErrorAfter([](json& j) {
        j["post_processor"] = {{"type", "BertProcessing"}, {"sep", {"</s>", 2}}, {"cls", {1}}};
      }),
      "tokenizer.json: post_processor.cls is not a token and its id");
  const json metaspace = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "last"}};
  EXPECT_EQ(ErrorAfter([&](json& j) { j["pre_tokenizer"] = metaspace; }),
            "tokenizer.json: pre_tokenizer.prepend_scheme \"last\" is not supported");
}

TEST(TokenizerErrors, PreTokenizers) {
  const json good = SplitRegexJson({});
  const auto split = [](json& j) -> json& { return j["pre_tokenizer"]["pretokenizers"][0]; };
  const std::string at = "tokenizer.json: pre_tokenizer.pretokenizers[0].";
  EXPECT_EQ(ErrorAfter([&](json& j) { split(j)["pattern"]["Regex"] = "a("; }, good),
            at + "pattern.Regex \"a(\": missing closing parenthesis (at byte 2)");
  EXPECT_EQ(ErrorAfter([&](json& j) { split(j)["pattern"]["Regex"] = "\\bx"; }, good),
            at + "pattern.Regex \"\\\\bx\": \\b is not supported");
  EXPECT_EQ(ErrorAfter([&](json& j) { split(j)["behavior"] = "Glued"; }, good),
            at + "behavior \"Glued\" is not supported");
  EXPECT_EQ(ErrorAfter(
                [&](json& j) {
                  split(j)["pattern"] = {{"String", ""}};
                },
                good),
            at + "pattern.String is empty");
  EXPECT_EQ(ErrorAfter(
                [&](json& j) {
                  std::swap(j["pre_tokenizer"]["pretokenizers"][0],
                            j["pre_tokenizer"]["pretokenizers"][1]);
                },
                good),
            "tokenizer.json: pre_tokenizer.pretokenizers[1].type \"Split\" after ByteLevel is not "
            "supported");
  EXPECT_EQ(
      ErrorAfter([&](json& j) { j["pre_tokenizer"]["pretokenizers"] = json(40, split(j)); }, good),
      "tokenizer.json: pre_tokenizer.pretokenizers[32] is one step too many");
}

TEST(TokenizerErrors, Vocabulary) {
  EXPECT_EQ(ErrorAfter([](json& j) { j["model"]["vocab"]["x"] = -1; }),
            "tokenizer.json: model.vocab.x -1 is not an integer from 0 to 1048575");
  EXPECT_EQ(ErrorAfter([](json& j) { j["model"]["vocab"]["x"] = 1048576; }),
            "tokenizer.json: model.vocab.x 1048576 is not an integer from 0 to 1048575");
  EXPECT_EQ(ErrorAfter([](json& j) { j["model"]["vocab"]["x"] = "7"; }),
            "tokenizer.json: model.vocab.x \"7\" is not an integer from 0 to 1048575");
  EXPECT_EQ(ErrorAfter([](json& j) { j["model"]["vocab"]["x\ny"] = nullptr; }),
            "tokenizer.json: model.vocab.x?y is missing");
  EXPECT_EQ(ErrorAfter([](json& j) { j["model"]["vocab"][std::string(1000, 'x')] = nullptr; }),
            "tokenizer.json: model.vocab." + std::string(388, 'x') + "... is missing");
  const std::string whole(387, 'x');  // and a character of two bytes, of which one would be left
  EXPECT_EQ(ErrorAfter([&](json& j) { j["model"]["vocab"][whole + "\u00e9\u00e9"] = nullptr; }),
            "tokenizer.json: model.vocab." + whole + "... is missing");
  const std::string twice = ErrorAfter([](json& j) { j["model"]["vocab"]["x"] = 5; });
  EXPECT_NE(twice.find("tokenizer.json: model.vocab gives the id 5 to "), twice.npos) << twice;
  EXPECT_EQ(ErrorAfter([](json& j) { j["model"].erase("vocab"); }),
            "tokenizer.json: model.vocab is missing");
  EXPECT_EQ(ErrorAfter([](json& j) { j.erase("model"); }), "tokenizer.json: model is missing");
  EXPECT_EQ(ErrorAfter([](json& j) { j["model"]["unk_token"] = "<nope>"; }),
            "tokenizer.json: model.unk_token \"<nope>\" is not in the vocabulary");
}

TEST(TokenizerErrors, Merges) {
  EXPECT_EQ(ErrorAfter([](json& j) { j["model"]["merges"].push_back("▁ z"); }),
            "tokenizer.json: model.merges[1] \"▁ z\" does not name two tokens that make a third");
  EXPECT_EQ(ErrorAfter([](json& j) {
              j["model"]["merges"][0] = {"t", "t"};
            }),
            "tokenizer.json: model.merges[0] [\"t\",\"t\"] does not name two tokens that make a "
            "third");
  EXPECT_EQ(ErrorAfter([](json& j) { j["model"]["merges"][0] = 3; }),
            "tokenizer.json: model.merges[0] is neither a string nor a pair of strings");
  EXPECT_EQ(ErrorAfter([](json& j) { j["model"].erase("merges"); }),
            "tokenizer.json: model.merges is missing");
}

TEST(TokenizerErrors, MergesOfTokensWithSpaces) {
  json document = ByteFallbackJson({});
  json& vocab = document["model"]["vocab"];
  vocab[" "] = 300;
  vocab["  "] = 301;
  document["model"]["merges"] = {"   "};  // " " and " ", and nothing else that could be meant
  document["normalizer"] = nullptr;
  EXPECT_EQ(EncodePlain(*ModelDir(document).Load(), "  "), std::vector<uint32_t>{301});
  vocab["   "] = 302;
  document["model"]["merges"] = {"    "};  // one and two, or two and one
  EXPECT_EQ(ErrorAfter([](json&) {}, document),
            "tokenizer.json: model.merges[0] \"    \" does not name two tokens that make a third");
}

TEST(TokenizerErrors, AddedTokens) {
  EXPECT_EQ(ErrorAfter([](json& j) { j["added_tokens"][1]["id"] = 2; }),
            "tokenizer.json: added_tokens[1].id 2 already belongs to \"</s>\"");
  EXPECT_EQ(ErrorAfter([](json& j) { j["added_tokens"][1]["id"] = 900; }),
            "tokenizer.json: added_tokens[1].content \"<s>\" already has an id");
  EXPECT_EQ(ErrorAfter([](json& j) { j["added_tokens"].push_back(j["added_tokens"][0]); }),
            "tokenizer.json: added_tokens[3].content \"<unk>\" already has an id");
  EXPECT_EQ(ErrorAfter([](json& j) { j["added_tokens"][0]["id"] = 1u << 31; }),
            "tokenizer.json: added_tokens[0].id 2147483648 is not an integer from 0 to 1048575");
  EXPECT_EQ(ErrorAfter([](json& j) { j["added_tokens"][2]["content"] = ""; }),
            "tokenizer.json: added_tokens[2].content is not of 1 to 1024 bytes");
  EXPECT_EQ(ErrorAfter([](json& j) { j["added_tokens"][2]["lstrip"] = 1; }),
            "tokenizer.json: added_tokens[2].lstrip is not true or false");
  EXPECT_EQ(ErrorAfter([](json& j) { j["added_tokens"] = 5; }),
            "tokenizer.json: added_tokens is not an array");
}

TEST(TokenizerErrors, Prefix) {
  EXPECT_EQ(
      ErrorAfter([](json& j) { j["post_processor"]["special_tokens"]["<s>"]["ids"] = {999}; }),
      "tokenizer.json: post_processor names the id 999, which no token has");
  EXPECT_EQ(ErrorAfter([](json& j) { j["post_processor"]["special_tokens"].erase("<s>"); }),
            "tokenizer.json: post_processor.special_tokens.<s>.ids is missing or empty");
  EXPECT_EQ(ErrorAfter([](json& j) { j["post_processor"]["single"].erase(1); }),
            "tokenizer.json: post_processor.single does not contain the sequence A");
}

TEST(TokenizerErrors, Config) {
  const ModelDir dir(ByteLevelJson({}));
  const std::string file = dir.path() + "/tokenizer_config.json: ";
  dir.Write("tokenizer_config.json", R"({"add_eos_token": true, "eos_token": "</s>"})");
  EXPECT_EQ(dir.LoadError(),
            file + "add_eos_token is true, but eos_token names no token of the vocabulary");
  dir.Write("tokenizer_config.json", R"({"added_tokens_decoder": {"x": {"content": "<x>"}}})");
  EXPECT_EQ(dir.LoadError(), file +
                                 "added_tokens_decoder.x has a name that is not an integer from "
                                 "0 to 1048575");
  dir.Write("tokenizer_config.json", "{");
  EXPECT_EQ(dir.LoadError(), file + "not valid JSON at byte 2");
  dir.Write("tokenizer_config.json", R"({"add_bos_token": "yes"})");
  EXPECT_EQ(dir.LoadError(), file + "add_bos_token is not true or false");
  dir.Write("tokenizer_config.json", R"({"add_bos_token": true, "bos_token": "<s>"})");
  EXPECT_EQ(dir.LoadError(),
            file + "add_bos_token is true, but bos_token names no token of the vocabulary");
}

TEST(TokenizerErrors, TooManyAddedTokens) {
  EXPECT_EQ(ErrorAfter([](json& j) {
              for (uint32_t i = 0; i < 9000; ++i) {
                const std::string name = std::to_string(i) + std::string(1000, 'x');
                j["added_tokens"].push_back(AddedTokenJson(1000 + i, name, false));
              }
            }),
            "tokenizer.json: added_tokens has 9003 tokens of 9034902 bytes, more than 200000 or "
            "8388608");
}

TEST(TokenizerErrors, Json) {
  EXPECT_EQ(ErrorOfText("{\"model\": "), "tokenizer.json: not valid JSON at byte 11");
  EXPECT_EQ(ErrorOfText(""), "tokenizer.json: not valid JSON at byte 1");
  EXPECT_EQ(ErrorOfText("{} x"), "tokenizer.json: not valid JSON at byte 4");
  EXPECT_EQ(ErrorOfText("{\"a\": \"\xFF\"}"), "tokenizer.json: not valid JSON at byte 8");
  EXPECT_EQ(ErrorOfText("[]"), "tokenizer.json: the document is not an object");
  EXPECT_EQ(ErrorOfText("{\"a\": 1, \"a\": 2}"), "tokenizer.json: the key \"a\" appears twice");
  EXPECT_EQ(ErrorOfText(std::string(1'000'000, '[')), "tokenizer.json: nested deeper than 32");
}

TEST(TokenizerErrors, Files) {
  const ModelDir dir(json::object());
  EXPECT_TRUE(absl::IsNotFound(Tokenizer::Load(dir.path() + "/none").status()));
  const std::string file = dir.path() + "/tokenizer.json";
  ASSERT_EQ(truncate(file.c_str(), kMaxJsonFileBytes + 1), 0);
  EXPECT_EQ(dir.LoadError(), file + ": 67108865 bytes, more than 67108864");
  ASSERT_EQ(remove(file.c_str()), 0);
  ASSERT_EQ(mkfifo(file.c_str(), 0600), 0);
  EXPECT_EQ(dir.LoadError(), file + ": not a regular file");
}

TEST(JsonFile, ReadsWhatIsWritten) {
  const json document = json::parse(
      R"({"a": [1, -2, 2.5, true, false, null, "x\u00e9", [], {}], "b": {"c": {"a": [[1]]}}})");
  const ModelDir dir(document);
  const absl::StatusOr<json> read = ReadJsonFile(dir.path() + "/tokenizer.json");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, document);
}

}  // namespace
}  // namespace sparsekv::tokenizer
