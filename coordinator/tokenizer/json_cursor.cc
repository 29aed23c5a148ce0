#include "coordinator/tokenizer/json_cursor.h"

#include <utility>

#include "base/concat.h"
#include "base/one_line.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::tokenizer {
namespace {

using nlohmann::json;

constexpr size_t kMaxShownBytes = 120;
constexpr size_t kMaxPlaceBytes = 400;

const json& Null() {
  static const json null;
  return null;
}

}  // namespace

JsonCursor::JsonCursor(const json& document, std::string file, absl::Status* first_error)
    : value_(&document), file_(std::move(file)), first_error_(first_error) {}

JsonCursor::JsonCursor(const json* value, const JsonCursor& parent, std::string path)
    : value_(value),
      file_(parent.file_),
      path_(std::move(path)),
      first_error_(parent.first_error_) {}

JsonCursor JsonCursor::operator[](std::string_view member) const {
  const std::string name(member);
  const json* value = &Null();
  if (value_->is_object()) {
    const auto found = value_->find(name);
    if (found != value_->end()) value = &*found;
  } else if (!value_->is_null()) {
    Fail("is not an object");
  }
  return JsonCursor(value, *this, path_.empty() ? name : Concat(path_, ".", name));
}

JsonCursor JsonCursor::operator[](size_t element) const {
  return JsonCursor(&(*value_)[element], *this, Concat(path_, "[", element, "]"));
}

size_t JsonCursor::Size() const {
  if (value_->is_array()) return value_->size();
  if (!value_->is_null()) Fail("is not an array");
  return 0;
}

std::string JsonCursor::String() const {
  if (value_->is_string()) return value_->get<std::string>();
  Fail(value_->is_null() ? "is missing" : "is not a string");
  return {};
}

bool JsonCursor::BoolOr(bool fallback) const {
  if (value_->is_boolean()) return value_->get<bool>();
  if (!value_->is_null()) Fail("is not true or false");
  return fallback;
}

uint32_t JsonCursor::UintBelow(uint32_t limit) const {
  if (value_->is_number_unsigned() && value_->get<uint64_t>() < limit) {
    return value_->get<uint32_t>();
  }
  if (value_->is_null()) {
    Fail("is missing");
  } else {
    Fail(Concat(Shown(*value_), " is not an integer from 0 to ", limit - 1));
  }
  return 0;
}

void JsonCursor::Refuse() const {
  Record(absl::StatusCode::kUnimplemented, Concat(Shown(*value_), " is not supported"));
}

void JsonCursor::Fail(std::string_view what) const {
  Record(absl::StatusCode::kInvalidArgument, what);
}

void JsonCursor::Record(absl::StatusCode code, std::string_view what) const {
  if (failed()) return;
  std::string place = path_.empty() ? "the document" : path_;  // with names that the file chose
  if (place.size() > kMaxPlaceBytes) {
    place.resize(kMaxPlaceBytes);
    place.resize(ValidUtf8Prefix(place));  // a character that was cut
    place += "...";
  }
  *first_error_ = absl::Status(code, Concat(file_, ": ", OneLine(Concat(place, " ", what))));
}

std::string Shown(const json& value) {
  if (value.is_object()) return "{...}";
  if (value.is_array()) return "[...]";
  std::string shown = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (shown.size() > kMaxShownBytes) shown = shown.substr(0, kMaxShownBytes) + "...";
  return shown;
}

}  // namespace sparsekv::tokenizer
