#include "kv_store/memory_check.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace sparsekv::kv_store {
namespace {

constexpr size_t kUnlimited = std::numeric_limits<size_t>::max();

std::optional<size_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  uint64_t number = 0;
  if (!(file >> text) || !absl::SimpleAtoi(text, &number)) return std::nullopt;  // "max" too
  return number;
}

// The path below the cgroup root, from the line "0::/path" that version 2 has.
std::optional<std::string> OwnCgroup(const std::string& file_path) {
  std::ifstream file(file_path);
  for (std::string line; std::getline(file, line);) {
    absl::string_view path = line;
    if (absl::ConsumePrefix(&path, "0::")) return std::string(path);
  }
  return std::nullopt;
}

// A limit anywhere on the way up to the root binds.
size_t LeftInCgroups(const MemorySources& sources) {
  const std::optional<std::string> own = OwnCgroup(sources.own_cgroup);
  if (!own) return kUnlimited;
  size_t left = kUnlimited;
  for (std::string path = *own;;) {
    const std::string folder = absl::StrCat(sources.cgroup_root, path == "/" ? "" : path);
    const std::optional<size_t> limit = ReadNumber(folder + "/memory.max");
    const std::optional<size_t> used = ReadNumber(folder + "/memory.current");
    if (limit && used) left = std::min(left, *limit - std::min(*limit, *used));
    if (path.empty() || path == "/") return left;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

}  // namespace

absl::StatusOr<size_t> AvailableMemory(const MemorySources& sources) {
  std::ifstream file(sources.meminfo);
  for (std::string key; file >> key;) {
    size_t kib = 0;
    if (key == "MemAvailable:" && file >> kib) return std::min(kib << 10, LeftInCgroups(sources));
  }
  return absl::NotFoundError(absl::StrCat(sources.meminfo, " has no MemAvailable"));
}

absl::Status CheckMemory(size_t needed_bytes, size_t available_bytes, const char* what) {
  if (needed_bytes <= available_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(what, " needs ", needed_bytes, " bytes, ", available_bytes, " are available"));
}

}  // namespace sparsekv::kv_store
