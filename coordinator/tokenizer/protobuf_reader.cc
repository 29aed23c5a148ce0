#include "coordinator/tokenizer/protobuf_reader.h"

namespace sparsekv::tokenizer {

bool ProtobufReader::Next(Field* field) {
  if (rest_.empty() || failed_) return false;
  failed_ = true;  // until the whole field is there
  uint64_t tag = 0;
  if (!Varint(&tag) || tag >> 3 == 0 || tag >> 32 != 0) return false;
  *field = {.number = static_cast<uint32_t>(tag >> 3)};
  switch (tag & 7) {
    case 0:
      field->kind = Field::Kind::kVarint;
      if (!Varint(&field->value)) return false;
      break;
    case 1:
      field->kind = Field::Kind::kFixed64;
      if (!Fixed(8, &field->value)) return false;
      break;
    case 2: {
      field->kind = Field::Kind::kBytes;
      uint64_t length = 0;
      if (!Varint(&length) || length > rest_.size()) return false;
      field->bytes = rest_.substr(0, length);
      rest_.remove_prefix(length);
      break;
    }
    case 5:
      field->kind = Field::Kind::kFixed32;
      if (!Fixed(4, &field->value)) return false;
      break;
    default:
      return false;  // groups, which no file of today has
  }
  failed_ = false;
  return true;
}

bool ProtobufReader::Varint(uint64_t* value) {
  *value = 0;
  for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
    const uint8_t byte = static_cast<uint8_t>(rest_[0]);
    rest_.remove_prefix(1);
    *value |= uint64_t{byte & 0x7Fu} << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

bool ProtobufReader::Fixed(size_t size, uint64_t* value) {
  if (rest_.size() < size) return false;
  *value = 0;
  for (size_t i = 0; i < size; ++i) {
    *value |= uint64_t{static_cast<uint8_t>(rest_[i])} << (8 * i);
  }
  rest_.remove_prefix(size);
  return true;
}

}  // namespace sparsekv::tokenizer
