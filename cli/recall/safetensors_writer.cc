#include "cli/recall/safetensors_writer.h"

#include "base/check.h"
#include "gpu_worker/checkpoint/json_file.h"
#include "kernels/half.h"

namespace sparsekv {
namespace {

const char* FormatName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
  }
  return "?";
}

}  // namespace

void SafetensorsWriter::Add(const std::string& name, const std::vector<uint64_t>& shape,
                            std::span<const float> values) {
  uint64_t count = 1;
  for (uint64_t extent : shape) count *= extent;
  CHECK_EQ(count, values.size());
  CHECK(!header_.contains(name));
  const size_t begin = data_.size();
  data_.resize(begin + values.size() * SizeOf(dtype_));
  for (size_t i = 0; i < values.size(); ++i) {
    StoreValue(data_.data() + begin, i, dtype_, values[i]);
  }
  header_[name] = {
      {"dtype", FormatName(dtype_)}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
}

absl::Status SafetensorsWriter::Write(const std::string& path) const {
  nlohmann::json object = header_;
  object["__metadata__"] = {{"format", "pt"}};
  std::string header = object.dump();
  while (header.size() % 8 != 0) header += ' ';  // so that the data is aligned
  const uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
  bytes += header;
  bytes += data_;
  return WriteFileAtomically(path, bytes);
}

}  // namespace sparsekv
