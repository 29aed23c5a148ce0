#pragma once

#include <cstdint>
#include <string_view>

namespace sparsekv::tokenizer {

// The fields of one serialised protocol buffer, in order, without a schema. Views into the bytes.
class ProtobufReader {
 public:
  struct Field {
    uint32_t number = 0;
    uint64_t value = 0;      // of a varint or a fixed-size field
    std::string_view bytes;  // of a length-delimited one
    enum class Kind { kVarint, kFixed64, kBytes, kFixed32 } kind = Kind::kVarint;
  };

  explicit ProtobufReader(std::string_view bytes) : rest_(bytes) {}

  // False at the end, or when what follows is no field.
  bool Next(Field* field);
  bool failed() const { return failed_; }

 private:
  bool Varint(uint64_t* value);
  bool Fixed(size_t size, uint64_t* value);

  std::string_view rest_;
  bool failed_ = false;
};

}  // namespace sparsekv::tokenizer
