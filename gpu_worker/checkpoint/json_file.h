#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sparsekv {

// Reads a small file that somebody else wrote as one JSON object. Refused, with an error of one
// line that begins with the path: a missing file or directory, anything but a regular file (through
// symbolic links, as hub caches have them), more than `max_bytes`, text that is not JSON, nesting
// deeper than 32, a key that appears twice in one object.
absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path, size_t max_bytes);

// Creates or replaces `path` as a whole: a reader sees the old bytes or the new ones.
absl::Status WriteFileAtomically(const std::string& path, std::string_view bytes);

// Typed, bounded access to the fields of an object. The first field that is wrong makes status() an
// InvalidArgument error "FILE: FIELD VALUE what is wrong"; later getters still return a value
// within their bounds (the fallback or the minimum), so that a reader may read on and look at
// status() once. A field that is null counts as absent. `object` outlives this.
class JsonFields {
 public:
  // `prefix` is written before every field's name, e.g. "rope_scaling."
  JsonFields(const nlohmann::json& object, std::string file, std::string prefix = "");

  bool Has(const char* name) const;
  const nlohmann::json& Value(const char* name) const;  // REQUIRES: Has(name)

  uint32_t Unsigned(const char* name, uint32_t min, uint32_t max);  // absent is an error
  uint32_t UnsignedOr(const char* name, uint32_t fallback, uint32_t min, uint32_t max);
  double Positive(const char* name);  // finite and > 0; absent is an error
  double PositiveOr(const char* name, double fallback);
  bool BoolOr(const char* name, bool fallback);
  std::string String(const char* name);  // absent is an error
  std::string StringOr(const char* name, std::string fallback);

  // Records the error "FILE: FIELD VALUE `what`".
  void Refuse(const char* name, std::string_view what);
  // Records the error "FILE: `what`".
  void RefuseFile(std::string_view what);

  const absl::Status& status() const { return status_; }
  const std::string& file() const { return file_; }

 private:
  const nlohmann::json& object_;
  const std::string file_;
  const std::string prefix_;
  absl::Status status_;
};

}  // namespace sparsekv
