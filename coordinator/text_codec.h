#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace sparsekv {

// Ids of one completion, one by one, into text that is always whole characters. Not thread-safe.
class TextStream {
 public:
  virtual ~TextStream() = default;
  virtual std::string Push(uint32_t id) = 0;
  virtual std::string Finish() = 0;  // what was held back
};

// What the coordinator needs of a tokenizer. Thread-safe; outlives its streams.
class TextCodec {
 public:
  virtual ~TextCodec() = default;
  virtual absl::StatusOr<std::vector<uint32_t>> Encode(std::string_view text, bool bos) const = 0;
  virtual std::unique_ptr<TextStream> NewCompletion() const = 0;
};

}  // namespace sparsekv
