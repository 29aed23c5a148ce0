#include "gpu_worker/checkpoint/json_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmath>
#include <utility>

#include "base/concat.h"
#include "base/json_file.h"
#include "base/one_line.h"

namespace sparsekv {
namespace {

using nlohmann::json;

constexpr size_t kShownValueBytes = 80;

// A value as an error shows it: one line, cut where it gets long.
std::string Shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() <= kShownValueBytes) return text;
  size_t cut = kShownValueBytes;
  while (cut > 0 && (text[cut] & 0xC0) == 0x80) --cut;  // never inside a UTF-8 sequence
  return text.substr(0, cut) + "...";
}

absl::Status ErrnoStatus(const std::string& path, int error) {
  const std::string what = Concat(path, ": ", strerror(error));
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(what);
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(what);
  return absl::UnknownError(what);
}

}  // namespace

absl::StatusOr<json> ReadJsonObject(const std::string& path, size_t max_bytes) {
  absl::StatusOr<json> value = ReadJsonFile(path, max_bytes);
  if (value.ok() && !value->is_object()) {
    return absl::InvalidArgumentError(Concat(path, ": not a JSON object"));
  }
  return value;
}

absl::Status WriteFileAtomically(const std::string& path, std::string_view bytes) {
  const std::string temporary = Concat(path, ".", getpid(), ".tmp");
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return ErrnoStatus(temporary, errno);
  size_t done = 0;
  int error = 0;
  while (done < bytes.size() && error == 0) {
    const ssize_t wrote = write(fd, bytes.data() + done, bytes.size() - done);
    if (wrote >= 0) {
      done += static_cast<size_t>(wrote);
    } else if (errno != EINTR) {
      error = errno;
    }
  }
  if (error == 0 && fsync(fd) != 0) error = errno;
  if (close(fd) != 0 && error == 0) error = errno;
  if (error == 0 && rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error == 0) return absl::OkStatus();
  unlink(temporary.c_str());
  return ErrnoStatus(path, error);
}

JsonFields::JsonFields(const json& object, std::string file, std::string prefix)
    : object_(object), file_(std::move(file)), prefix_(std::move(prefix)) {}

bool JsonFields::Has(const char* name) const {
  const auto found = object_.find(name);
  return found != object_.end() && !found->is_null();
}

const json& JsonFields::Value(const char* name) const { return *object_.find(name); }

uint32_t JsonFields::Unsigned(const char* name, uint32_t min, uint32_t max) {
  if (!Has(name)) Refuse(name, "is missing");
  return UnsignedOr(name, min, min, max);
}

uint32_t JsonFields::UnsignedOr(const char* name, uint32_t fallback, uint32_t min, uint32_t max) {
  if (!Has(name)) return fallback;
  const json& value = Value(name);
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number >= min && number <= max) return static_cast<uint32_t>(number);
  }
  Refuse(name, Concat("is not an integer in ", min, "..", max));
  return min;
}

double JsonFields::Positive(const char* name) {
  if (!Has(name)) Refuse(name, "is missing");
  return PositiveOr(name, 1.0);
}

double JsonFields::PositiveOr(const char* name, double fallback) {
  if (!Has(name)) return fallback;
  const json& value = Value(name);
  if (value.is_number()) {
    const double number = value.get<double>();
    if (std::isfinite(number) && number > 0) return number;
  }
  Refuse(name, "is not a positive number");
  return fallback;
}

bool JsonFields::BoolOr(const char* name, bool fallback) {
  if (!Has(name)) return fallback;
  if (Value(name).is_boolean()) return Value(name).get<bool>();
  Refuse(name, "is not true or false");
  return fallback;
}

std::string JsonFields::String(const char* name) {
  if (!Has(name)) Refuse(name, "is missing");
  return StringOr(name, "");
}

std::string JsonFields::StringOr(const char* name, std::string fallback) {
  if (!Has(name)) return fallback;
  if (Value(name).is_string()) return Value(name).get<std::string>();
  Refuse(name, "is not a string");
  return fallback;
}

void JsonFields::Refuse(const char* name, std::string_view what) {
  const std::string value = Has(name) ? Concat(" ", Shown(Value(name))) : std::string();
  RefuseFile(Concat(prefix_, name, value, " ", what));
}

void JsonFields::RefuseFile(std::string_view what) {
  if (!status_.ok()) return;
  status_ = absl::InvalidArgumentError(Concat(file_, ": ", OneLine(std::string(what))));
}

}  // namespace sparsekv
