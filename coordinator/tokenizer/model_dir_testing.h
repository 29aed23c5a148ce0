#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/tokenizer/tokenizer.h"

// Small tokenizers for tests, written as files.
namespace sparsekv::tokenizer {

// A directory of its own with a model's files in it, removed at the end.
class ModelDir {
 public:
  ModelDir();  // empty
  explicit ModelDir(const nlohmann::json& tokenizer_json);
  ~ModelDir();
  ModelDir(const ModelDir&) = delete;
  ModelDir& operator=(const ModelDir&) = delete;

  void Write(const std::string& file_name, std::string_view content) const;
  const std::string& path() const { return path_; }

  // REQUIRES: the files can be loaded.
  std::unique_ptr<Tokenizer> Load() const;
  // The message of the error that Load must give.
  std::string LoadError() const;

 private:
  std::string path_;
};

using MergeList = std::vector<std::pair<std::string, std::string>>;

// GPT-2's style: ids 0 to 255 are the bytes, then one id for each merge, then <|end|> (special).
nlohmann::json ByteLevelJson(const MergeList& merges);

// Llama 3's style: as before with its regex, merges as pairs, ignore_merges, and <|begin|> as BOS.
nlohmann::json SplitRegexJson(const MergeList& merges);

// Llama 2's style: <unk>, <s>, </s>, 256 byte tokens from id 3, then the single characters of the
// merges' halves and one id for each merge; BOS is <s>.
nlohmann::json ByteFallbackJson(const MergeList& merges);

nlohmann::json AddedTokenJson(uint32_t id, const std::string& content, bool special);

// The id that a tokenizer's file gives to a model token. REQUIRES: there is one.
uint32_t IdOf(const nlohmann::json& tokenizer_json, const std::string& token);

// Ids without BOS. REQUIRES: the text can be encoded.
std::vector<uint32_t> EncodePlain(const Tokenizer& tokenizer, std::string_view text);

}  // namespace sparsekv::tokenizer
