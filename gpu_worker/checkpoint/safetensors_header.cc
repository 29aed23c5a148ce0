#include "gpu_worker/checkpoint/safetensors_header.h"

#include <rapidjson/memorystream.h>
#include <rapidjson/reader.h>

#include <algorithm>
#include <set>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "absl/status/status.h"
#include "base/concat.h"
#include "base/one_line.h"

namespace sparsekv {
namespace {

constexpr size_t kMaxTensors = 1 << 20;
constexpr size_t kMaxNameBytes = 1024;
constexpr size_t kMaxDimensions = 8;
constexpr size_t kMaxMetadataKeys = 4096;

struct TypeInfo {
  std::string_view name;
  uint32_t bits;
  std::optional<DType> dtype;
};

constexpr TypeInfo kTypes[] = {
    {"F32", 32, DType::kF32},
    {"F16", 16, DType::kF16},
    {"BF16", 16, DType::kBF16},
    {"BOOL", 8, {}},
    {"U8", 8, {}},
    {"I8", 8, {}},
    {"F8_E4M3", 8, {}},
    {"F8_E5M2", 8, {}},
    {"F8_E8M0", 8, {}},
    {"F4", 4, {}},
    {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},
    {"I16", 16, {}},
    {"U16", 16, {}},
    {"I32", 32, {}},
    {"U32", 32, {}},
    {"I64", 64, {}},
    {"U64", 64, {}},
    {"F64", 64, {}},
    {"C64", 64, {}},
};

const TypeInfo* FindType(std::string_view name) {
  for (const TypeInfo& type : kTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

// The header's grammar, event by event: an object of tensors, each an object with exactly dtype,
// shape and data_offsets, and perhaps "__metadata__", an object of strings. Anything else stops the
// parser, so that neither depth nor size of foreign structure costs memory.
class HeaderHandler : public rapidjson::BaseReaderHandler<rapidjson::UTF8<>, HeaderHandler> {
 public:
  std::vector<SafetensorsRecord> TakeRecords() { return std::move(records_); }
  const std::string& error() const { return error_; }

  bool Default() { return Unexpected(); }
  bool Uint(unsigned value) { return Uint64(value); }

  bool Uint64(uint64_t value) {
    if (place_ == Place::kShape) {
      if (records_.back().shape.size() == kMaxDimensions) return FailTensor("too many dimensions");
      records_.back().shape.push_back(value);
      return true;
    }
    if (place_ == Place::kOffsets && offsets_ < 2) {
      (offsets_++ == 0 ? records_.back().begin : records_.back().end) = value;
      return true;
    }
    return Unexpected();
  }

  bool String(const char* text, rapidjson::SizeType size, bool) {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kTensor || field_ != "dtype") return Unexpected();
    const std::string_view name(text, size);
    const TypeInfo* type = FindType(name);
    if (type == nullptr) {
      return FailTensor(Concat("dtype \"", name.substr(0, 32), "\" is not known"));
    }
    records_.back().dtype_name = name;
    records_.back().dtype = type->dtype;
    field_.clear();
    return true;
  }

  bool StartObject() {
    if (place_ == Place::kStart) return Enter(Place::kRoot);
    if (place_ == Place::kRoot && metadata_next_) return Enter(Place::kMetadata);
    if (place_ == Place::kRoot) {
      fields_seen_.clear();
      return Enter(Place::kTensor);
    }
    return Unexpected();
  }

  bool EndObject(rapidjson::SizeType) {
    if (place_ == Place::kTensor && fields_seen_.size() != 3) {
      return FailTensor("dtype, shape or data_offsets is missing");
    }
    return Enter(place_ == Place::kRoot ? Place::kEnd : Place::kRoot);
  }

  bool StartArray() {
    if (place_ != Place::kTensor) return Unexpected();
    if (field_ == "shape") return Enter(Place::kShape);
    if (field_ != "data_offsets") return Unexpected();
    offsets_ = 0;
    return Enter(Place::kOffsets);
  }

  bool EndArray(rapidjson::SizeType) {
    if (place_ == Place::kOffsets && offsets_ != 2) return FailTensor("data_offsets is not a pair");
    field_.clear();
    return Enter(Place::kTensor);
  }

  bool Key(const char* text, rapidjson::SizeType size, bool) {
    const std::string_view key(text, size);
    if (place_ == Place::kRoot) return RootKey(key);
    if (place_ == Place::kMetadata) {
      if (metadata_keys_.size() == kMaxMetadataKeys) return Fail("too many metadata keys");
      if (!metadata_keys_.emplace(key).second) return Fail("a metadata key appears twice");
      return true;
    }
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return FailTensor(Concat("unknown key \"", key.substr(0, 32), "\""));
    }
    field_ = key;
    if (!fields_seen_.insert(field_).second) return FailTensor(Concat(field_, " twice"));
    return true;
  }

 private:
  enum class Place { kStart, kRoot, kMetadata, kTensor, kShape, kOffsets, kEnd };

  bool Enter(Place place) {
    place_ = place;
    return true;
  }

  bool RootKey(std::string_view key) {
    if (key.size() > kMaxNameBytes) return Fail("a tensor's name is too long");
    if (!names_.emplace(key).second) return Fail(Concat("tensor \"", key, "\" twice"));
    metadata_next_ = key == "__metadata__";
    if (metadata_next_) return true;
    if (records_.size() == kMaxTensors) return Fail("too many tensors");
    records_.emplace_back().name = key;
    return true;
  }

  bool Fail(std::string what) {
    error_ = OneLine(std::move(what));
    return false;
  }
  bool FailTensor(std::string_view what) {
    return Fail(Concat("tensor \"", records_.back().name, "\": ", what));
  }
  bool Unexpected() { return Fail("the header is not a table of tensors"); }

  Place place_ = Place::kStart;
  bool metadata_next_ = false;
  uint32_t offsets_ = 0;               // of data_offsets, read so far
  std::string field_;                  // of the tensor, whose value comes next
  std::set<std::string> fields_seen_;  // of the tensor
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> metadata_keys_;
  std::vector<SafetensorsRecord> records_;
  std::string error_;
};

// What is wrong with the record's shape, type and extent; empty when nothing is.
std::string CheckRecord(const SafetensorsRecord& record, uint64_t data_bytes) {
  if (record.begin > record.end) return "data_offsets are the wrong way round";
  if (record.end > data_bytes) return "data_offsets reach past the end of the file";
  uint64_t bits = FindType(record.dtype_name)->bits;
  for (uint64_t extent : record.shape) {
    if (__builtin_mul_overflow(bits, extent, &bits)) return "its shape overflows";
  }
  if (bits % 8 != 0 || bits / 8 != record.end - record.begin) {
    return Concat("shape and dtype do not give the ", record.end - record.begin,
                  " bytes of data_offsets");
  }
  return "";
}

}  // namespace

absl::StatusOr<std::vector<SafetensorsRecord>> ParseSafetensorsHeader(std::string_view header,
                                                                      uint64_t data_bytes) {
  if (header.empty() || header.front() != '{') {
    return absl::InvalidArgumentError("the header does not begin with '{'");
  }
  rapidjson::MemoryStream stream(header.data(), header.size());
  rapidjson::Reader reader;
  HeaderHandler handler;
  // Iterative: depth costs no stack. The stream ends at a zero byte, so that must be the last one.
  constexpr unsigned kFlags =
      rapidjson::kParseIterativeFlag | rapidjson::kParseValidateEncodingFlag;
  const bool parsed = !reader.Parse<kFlags>(stream, handler).IsError();
  if (!handler.error().empty()) return absl::InvalidArgumentError(handler.error());
  if (!parsed || stream.Tell() != header.size()) {
    return absl::InvalidArgumentError(
        Concat("the header is not valid JSON (at byte ", 8 + stream.Tell(), ")"));
  }

  std::vector<SafetensorsRecord> records = handler.TakeRecords();
  std::sort(records.begin(), records.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t next = 0;
  for (const SafetensorsRecord& record : records) {
    std::string wrong = CheckRecord(record, data_bytes);
    if (wrong.empty() && record.begin < next) wrong = "overlaps the tensor before it";
    if (wrong.empty() && record.begin > next) wrong = "a gap lies before it";
    if (!wrong.empty()) {
      return absl::InvalidArgumentError(Concat("tensor \"", OneLine(record.name), "\": ", wrong));
    }
    next = record.end;
  }
  if (next != data_bytes) {
    return absl::InvalidArgumentError(
        Concat("the tensors take ", next, " bytes, the file has ", data_bytes));
  }
  return records;
}

}  // namespace sparsekv
