#pragma once

#include <optional>
#include <string_view>

#include "coordinator/chat/cursor.h"
#include "coordinator/chat/value.h"

namespace sparsekv::chat {

class Interpreter;
struct Scope;
struct Statement;

// A running {% for %} and what `loop` says of it. Items are taken one by one, so that a condition
// sees what the turns before it changed; `loop.last` and `loop.nextitem` look one ahead, and
// `loop.length` of a loop with a condition takes all of them.
struct Loop {
  Cursor source;
  const Statement* statement = nullptr;  // with the condition, or none
  Scope* outside = nullptr;              // in which it is evaluated; null: there is none
  bool has_length = false;               // the source has, and there is no condition
  Value iterable = {};

  const Value* read = nullptr;  // items taken early by `length`
  size_t read_size = 0, read_next = 0;
  int64_t length_before = 0;  // items given before that
  bool has_after = false, ended = false;
  Value after = {}, current = {}, before = {};
  int64_t index0 = -1;
  bool has_seen = false;
  Value seen = {};  // what `changed` was called with last

  // Where the loop's block ends. `loop` may be kept beyond it, the scope of its condition is not.
  class End {
   public:
    explicit End(Loop* loop) : loop_(*loop) {}
    ~End() {
      if (loop_.outside != nullptr) loop_.ended = true;
    }
    End(const End&) = delete;
    End& operator=(const End&) = delete;

   private:
    Loop& loop_;
  };

  // False when there are no more items.
  bool Next(Interpreter& interpreter, Value* item);
  bool PeekNext(Interpreter& interpreter);
  int64_t Length(Interpreter& interpreter);
  // loop.NAME, nothing when there is no such thing; methods excepted.
  std::optional<Value> Attribute(Interpreter& interpreter, std::string_view name);

 private:
  bool Take(Interpreter& interpreter, Value* item);
};

}  // namespace sparsekv::chat
