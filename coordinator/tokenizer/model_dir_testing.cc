#include "coordinator/tokenizer/model_dir_testing.h"

#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "base/check.h"
#include "coordinator/tokenizer/byte_alphabet.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::tokenizer {
namespace {

using nlohmann::json;

constexpr const char* kLlama3Words =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

void AddToken(json* vocab, const std::string& token) {
  if (!vocab->contains(token)) (*vocab)[token] = vocab->size();
}

json TemplateFor(const std::string& bos, uint32_t id) {
  return {{"type", "TemplateProcessing"},
          {"single",
           {{{"SpecialToken", {{"id", bos}, {"type_id", 0}}}},
            {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
          {"special_tokens", {{bos, {{"id", bos}, {"ids", {id}}, {"tokens", {bos}}}}}}};
}

json ByteVocabulary(const MergeList& merges) {
  json vocab = json::object();
  for (int byte = 0; byte < 256; ++byte) {
    std::string token;
    AppendUtf8(CharOfByte(static_cast<uint8_t>(byte)), &token);
    vocab[token] = byte;
  }
  for (const auto& [left, right] : merges) AddToken(&vocab, left + right);
  return vocab;
}

json ByteLevelStepJson(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", use_regex}};
}

}  // namespace

ModelDir::ModelDir(const json& tokenizer_json) : ModelDir() {
  Write("tokenizer.json", tokenizer_json.dump());
}

ModelDir::ModelDir() {
  std::string name = std::filesystem::temp_directory_path() / "sparsekv-tokenizer-XXXXXX";
  CHECK(mkdtemp(name.data()) != nullptr);
  path_ = name;
}

ModelDir::~ModelDir() { std::filesystem::remove_all(path_); }

void ModelDir::Write(const std::string& file_name, std::string_view content) const {
  std::ofstream out(path_ + "/" + file_name, std::ios::binary);
  out << content;
  out.close();
  CHECK(out.good());
}

std::unique_ptr<Tokenizer> ModelDir::Load() const {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(path_);
  if (!tokenizer.ok()) internal::CheckFailed(__FILE__, __LINE__, tokenizer.status().ToString());
  return *std::move(tokenizer);
}

std::string ModelDir::LoadError() const {
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(path_);
  CHECK(!tokenizer.ok());
  return std::string(tokenizer.status().message());
}

json ByteLevelJson(const MergeList& merges) {
  json merge_texts = json::array();
  for (const auto& [left, right] : merges) merge_texts.push_back(left + " " + right);
  const json vocab = ByteVocabulary(merges);
  const uint32_t end_id = static_cast<uint32_t>(vocab.size());
  return {{"added_tokens", {AddedTokenJson(end_id, "<|end|>", true)}},
          {"normalizer", nullptr},
          {"pre_tokenizer", ByteLevelStepJson(true)},
          {"post_processor", ByteLevelStepJson(true)},
          {"decoder", ByteLevelStepJson(true)},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merge_texts}}}};
}

json SplitRegexJson(const MergeList& merges) {
  json document = ByteLevelJson(merges);
  json pairs = json::array();
  for (const auto& [left, right] : merges) pairs.push_back(json::array({left, right}));
  document["model"]["merges"] = pairs;
  document["model"]["ignore_merges"] = true;
  const uint32_t begin_id = static_cast<uint32_t>(document["model"]["vocab"].size());
  document["added_tokens"] = {AddedTokenJson(begin_id, "<|begin|>", true)};
  document["pre_tokenizer"] = {{"type", "Sequence"},
                               {"pretokenizers",
                                {{{"type", "Split"},
                                  {"pattern", {{"Regex", kLlama3Words}}},
                                  {"behavior", "Isolated"},
                                  {"invert", false}},
                                 ByteLevelStepJson(false)}}};
  document["post_processor"] = {
      {"type", "Sequence"},
      {"processors", {ByteLevelStepJson(true), TemplateFor("<|begin|>", begin_id)}}};
  return document;
}

json ByteFallbackJson(const MergeList& merges) {
  json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (int byte = 0; byte < 256; ++byte) {
    AddToken(&vocab, FallbackTokenOfByte(static_cast<uint8_t>(byte)));
  }
  json merge_texts = json::array();
  for (const auto& [left, right] : merges) {
    const std::string whole = left + right;
    for (size_t at = 0; at < whole.size();) {
      const size_t length = FirstUtf8Char(std::string_view(whole).substr(at)).length;
      AddToken(&vocab, whole.substr(at, length));
      at += length;
    }
  }
  for (const auto& [left, right] : merges) {
    AddToken(&vocab, left + right);
    merge_texts.push_back(left + " " + right);
  }
  const json space_to_mark = {
      {"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}};
  const json mark_to_space = {
      {"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}};
  return {{"added_tokens",
           {AddedTokenJson(0, "<unk>", true), AddedTokenJson(1, "<s>", true),
            AddedTokenJson(2, "</s>", true)}},
          {"normalizer",
           {{"type", "Sequence"},
            {"normalizers", {{{"type", "Prepend"}, {"prepend", "▁"}}, space_to_mark}}}},
          {"pre_tokenizer", nullptr},
          {"post_processor", TemplateFor("<s>", 1)},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders",
             {mark_to_space,
              {{"type", "ByteFallback"}},
              {{"type", "Fuse"}},
              {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"vocab", vocab},
            {"merges", merge_texts}}}};
}

json AddedTokenJson(uint32_t id, const std::string& content, bool special) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

uint32_t IdOf(const json& tokenizer_json, const std::string& token) {
  const json& vocab = tokenizer_json["model"]["vocab"];
  CHECK(vocab.contains(token));
  return vocab[token].get<uint32_t>();
}

std::vector<uint32_t> EncodePlain(const Tokenizer& tokenizer, std::string_view text) {
  absl::StatusOr<std::vector<uint32_t>> ids = tokenizer.Encode(text, Tokenizer::Bos::kNone);
  if (!ids.ok()) internal::CheckFailed(__FILE__, __LINE__, ids.status().ToString());
  return *std::move(ids);
}

}  // namespace sparsekv::tokenizer
