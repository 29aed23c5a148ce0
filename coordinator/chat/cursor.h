#pragma once

#include <cstddef>
#include <vector>

#include "coordinator/chat/runtime.h"
#include "coordinator/chat/value.h"

namespace sparsekv::chat {

// Goes over what Python can iterate over, one item at a time.
class Cursor {
 public:
  // False at the end. Takes what it gives from an iterator for good.
  bool Next(Runtime& runtime, Value* item);

 private:
  friend Cursor Iterate(const Value& value);
  Value source_;
  size_t position_ = 0;
};

// Throws for what is not iterable. What is undefined has no items.
Cursor Iterate(const Value& value);
bool IsIterable(const Value& value);
// Whether what it iterates over has a length before it is read.
bool HasLength(const Value& value);

std::vector<Value> Items(Runtime& runtime, const Value& value);

}  // namespace sparsekv::chat
