#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/chat/arena.h"
#include "coordinator/chat/error.h"
#include "coordinator/chat/limits.h"
#include "coordinator/chat/value.h"

namespace sparsekv::chat {

[[noreturn]] inline void Throw(ErrorKind kind, std::string message) {
  throw TemplateError{kind, std::move(message), 0};
}
[[noreturn]] inline void ThrowRuntime(std::string message) {
  Throw(ErrorKind::kRuntime, std::move(message));
}
[[noreturn]] inline void ThrowLimit(const char* field) { Throw(ErrorKind::kLimit, field); }

// What one rendering has used of its limits, and the memory of its values. Not thread-safe.
class Runtime {
 public:
  explicit Runtime(const TemplateLimits& limits) : limits_(limits), arena_(limits.memory_bytes) {}

  const TemplateLimits& limits() const { return limits_; }
  Arena& arena() { return arena_; }

  void Charge(uint64_t steps = 1) {
    if (steps > limits_.steps - steps_) ThrowLimit("steps");
    steps_ += steps;
  }
  // For work over the bytes of a string or the items of a collection.
  void ChargeBytes(size_t bytes) { Charge(1 + bytes / 32); }
  // For comparing `name` with `count` others.
  void ChargeSearch(size_t count, std::string_view name) {
    Charge(1 + count * (1 + name.size() / 32) / 8);
  }
  void CheckItems(size_t count) {
    if (count > limits_.items) ThrowLimit("items");
    Charge(1 + count / 4);
  }
  void CheckText(size_t bytes) {
    if (bytes > limits_.output_bytes) ThrowLimit("output_bytes");
    ChargeBytes(bytes);
  }

  // Strings: a copy, or a part of what lives as long as this rendering.
  Value Text(std::string_view text, bool safe = false) {
    CheckText(text.size());
    return Value::String(arena_.Copy(text), safe);
  }
  static Value Part(std::string_view text, bool safe = false) { return Value::String(text, safe); }
  Value Texts(const std::vector<std::string_view>& parts);  // a list of parts

  Value MakeList(const std::vector<Value>& items, bool tuple = false);
  Value Pair(Value first, Value second);  // a tuple
  Value MakeIterator(const std::vector<Value>& items);
  // Later entries of the same key replace earlier ones and keep their place.
  Value MakeDict(const std::vector<DictEntry>& entries);
  Value View(const Dict& dict, DictView::What what) {
    return Value::Of(arena_.New<DictView>(&dict, what));
  }
  Value Undefined(UndefinedInfo::How how, Value object, Value name) {
    return Value::Of(arena_.New<UndefinedInfo>(how, object, name));
  }

  // One level deeper while it lives. Everything that recurses over templates or data takes one.
  class Depth {
   public:
    explicit Depth(Runtime& runtime) : runtime_(runtime) {
      if (runtime_.depth_ >= runtime_.limits_.depth) ThrowLimit("depth");
      ++runtime_.depth_;
    }
    ~Depth() { --runtime_.depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;

   private:
    Runtime& runtime_;
  };

 private:
  const TemplateLimits limits_;
  Arena arena_;
  uint64_t steps_ = 0;
  uint32_t depth_ = 0;
};

}  // namespace sparsekv::chat
