#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace sparsekv::tokenizer {

// A place inside a JSON document that knows its own name ("pre_tokenizer.pretokenizers[0].type"),
// for parsing without a status check after each field: a wrong field yields an empty value, and the
// first error of all cursors of a document is kept in one Status that the parser returns at its
// end. An absent member and null are the same. Not thread-safe; the document and the Status must
// outlive the cursors.
class JsonCursor {
 public:
  JsonCursor(const nlohmann::json& document, std::string file, absl::Status* first_error);

  JsonCursor operator[](std::string_view member) const;
  JsonCursor operator[](size_t element) const;  // REQUIRES: element < Size()
  size_t Size() const;                          // of an array; 0 for null

  const nlohmann::json& value() const { return *value_; }
  bool IsNull() const { return value_->is_null(); }
  bool IsObject() const { return value_->is_object(); }

  std::string String() const;
  bool BoolOr(bool fallback) const;  // null gives the fallback
  uint32_t UintBelow(uint32_t limit) const;

  // FILE: PATH VALUE is not supported
  void Refuse() const;
  // FILE: PATH WHAT
  void Fail(std::string_view what) const;
  bool failed() const { return !first_error_->ok(); }

 private:
  JsonCursor(const nlohmann::json* value, const JsonCursor& parent, std::string path);
  void Record(absl::StatusCode code, std::string_view what) const;

  const nlohmann::json* value_;
  std::string file_;
  std::string path_;
  absl::Status* first_error_;
};

// A value as it is shown in an error: JSON on one line, cut when long.
std::string Shown(const nlohmann::json& value);

}  // namespace sparsekv::tokenizer
