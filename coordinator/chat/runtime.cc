#include "coordinator/chat/runtime.h"

#include "absl/container/flat_hash_map.h"
#include "coordinator/chat/operators.h"

namespace sparsekv::chat {

namespace {

constexpr size_t kIndexedFrom = 16;  // entries; fewer are looked at one by one

const uint32_t* MakeIndex(Arena& arena, const std::vector<DictEntry>& entries, size_t* mask) {
  size_t slots = 64;
  while (slots < entries.size() * 2) slots *= 2;
  *mask = slots - 1;
  uint32_t* index = arena.Array<uint32_t>(slots);
  for (size_t i = 0; i < entries.size(); ++i) {
    if (!entries[i].key.Is(Value::Kind::kString)) continue;
    size_t slot = HashText(entries[i].key.text()) & *mask;
    while (index[slot] != 0) slot = (slot + 1) & *mask;
    index[slot] = static_cast<uint32_t>(i) + 1;
  }
  return index;
}

}  // namespace

Value Runtime::Texts(const std::vector<std::string_view>& parts) {
  CheckItems(parts.size());
  Value* items = arena_.Array<Value>(parts.size());
  for (size_t i = 0; i < parts.size(); ++i) items[i] = Value::String(parts[i]);
  return Value::Of(arena_.New<List>(items, parts.size()));
}

Value Runtime::MakeList(const std::vector<Value>& items, bool tuple) {
  CheckItems(items.size());
  return Value::Of(arena_.New<List>(arena_.Copy(items), items.size()), tuple);
}

Value Runtime::Pair(Value first, Value second) { return MakeList({first, second}, true); }

Value Runtime::MakeIterator(const std::vector<Value>& items) {
  CheckItems(items.size());
  return Value::Of(arena_.New<Iterator>(List{arena_.Copy(items), items.size()}));
}

Value Runtime::MakeDict(const std::vector<DictEntry>& entries) {
  CheckItems(entries.size());
  std::vector<DictEntry> unique;
  unique.reserve(entries.size());
  absl::flat_hash_map<std::string_view, size_t> seen;  // string keys, where there are many
  for (const DictEntry& entry : entries) {
    CheckHashable(entry.key);
    DictEntry* earlier = nullptr;
    if (entries.size() > kIndexedFrom && entry.key.Is(Value::Kind::kString)) {
      ChargeBytes(entry.key.text().size());
      const auto [place, is_new] = seen.try_emplace(entry.key.text(), unique.size());
      if (!is_new) earlier = &unique[place->second];
    } else {
      for (DictEntry& other : unique) {
        Charge();
        if (Equal(*this, other.key, entry.key)) earlier = &other;
      }
    }
    if (earlier != nullptr) {
      earlier->value = entry.value;
    } else {
      unique.push_back(entry);
    }
  }
  Dict* dict = arena_.New<Dict>(arena_.Copy(unique), unique.size());
  if (unique.size() > kIndexedFrom) dict->index = MakeIndex(arena_, unique, &dict->mask);
  return Value::Of(dict);
}

}  // namespace sparsekv::chat
