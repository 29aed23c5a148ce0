#pragma once

#include <deque>
#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/chat/runtime.h"
#include "coordinator/chat/value.h"

namespace sparsekv::chat {

// The names of one block: a loop's turn, a macro's call. Looked up outwards.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<std::string_view, Value>> names;
  bool kept = false;  // a macro was defined in it, which may be called when the block is over

  Value* FindHere(std::string_view name) {
    for (auto& [own, value] : names) {
      if (own == name) return &value;
    }
    return nullptr;
  }
  void Set(Runtime& runtime, std::string_view name, const Value& value) {
    runtime.ChargeSearch(names.size(), name);
    if (Value* place = FindHere(name)) {
      *place = value;
    } else {
      names.emplace_back(name, value);
    }
  }
};

// Owns the scopes of one rendering; reuses those that nothing can see any more.
class ScopePool {
 public:
  static constexpr size_t kMaxScopes = 100'000;

  Scope* Push(Scope* parent) {
    Scope* scope;
    if (free_.empty()) {
      if (scopes_.size() == kMaxScopes) ThrowLimit("scopes that macros keep");
      scope = &scopes_.emplace_back();
    } else {
      scope = free_.back();
      free_.pop_back();
    }
    scope->parent = parent;
    return scope;
  }
  void Pop(Scope* scope) {
    if (scope->kept) return;
    scope->names.clear();
    free_.push_back(scope);
  }
  // For a macro that is defined in it.
  static void Keep(Scope* scope) {
    for (; scope != nullptr && !scope->kept; scope = scope->parent) scope->kept = true;
  }

 private:
  std::deque<Scope> scopes_;
  std::vector<Scope*> free_;
};

// namespace(...): attributes that any block may set.
struct Namespace {
  static constexpr size_t kMaxNames = 1000;

  DictEntry* entries = nullptr;  // in the arena, with room for `room`
  size_t size = 0, room = 0;

  Value* Find(std::string_view name) const {
    for (size_t i = 0; i < size; ++i) {
      if (entries[i].key.text() == name) return &entries[i].value;
    }
    return nullptr;
  }
  void Set(Runtime& runtime, std::string_view name, const Value& value) {
    runtime.ChargeSearch(size, name);
    if (Value* place = Find(name)) {
      *place = value;
      return;
    }
    if (size == kMaxNames) ThrowLimit("names of a namespace");
    if (size == room) {
      room = room == 0 ? 8 : room * 2;
      DictEntry* larger = runtime.arena().Array<DictEntry>(room);
      std::copy(entries, entries + size, larger);
      entries = larger;
    }
    entries[size++] = {Value::String(name), value};
  }
};

}  // namespace sparsekv::chat
