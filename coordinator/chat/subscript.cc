// value[key] and value[start:stop:step].
#include <algorithm>

#include "base/concat.h"
#include "coordinator/chat/operators.h"
#include "coordinator/chat/text.h"

namespace sparsekv::chat {

using Kind = Value::Kind;

namespace {

// A Python index, which counts from the end when negative.
std::optional<size_t> Position(int64_t index, size_t size) {
  if (index < 0) index += static_cast<int64_t>(size);
  if (index < 0 || static_cast<size_t>(index) >= size) return std::nullopt;
  return static_cast<size_t>(index);
}

std::optional<Value> Character(Runtime& runtime, const Value& text, int64_t index) {
  const auto at = Position(index, Length(runtime, text));
  if (!at) return std::nullopt;
  const size_t byte = ByteOffset(text.text(), *at);
  return Runtime::Part(text.text().substr(byte, CharacterLength(text.text()[byte])), text.safe());
}

struct Bounds {
  int64_t start, step;
  size_t count;
};

int64_t Bound(const Value& value, int64_t fallback, int64_t size, bool backward) {
  if (value.Is(Kind::kNone)) return fallback;
  if (!value.IsInteger()) {
    if (value.Is(Kind::kUndefined)) ThrowUndefined(value);
    ThrowRuntime(Concat("a slice takes integers, not ", TypeName(value)));
  }
  int64_t at = value.integer();
  if (at < 0) at = at < -size ? -1 : at + size;
  return std::clamp<int64_t>(at, backward ? -1 : 0, backward ? size - 1 : size);
}

Bounds SliceBounds(size_t length, const Value& start, const Value& stop, const Value& step) {
  const int64_t size = static_cast<int64_t>(length);
  int64_t by = 1;
  if (!step.Is(Kind::kNone)) {
    if (!step.IsInteger()) ThrowRuntime("a slice's step is no integer");
    by = std::clamp<int64_t>(step.integer(), -size - 1, size + 1);
    if (by == 0) ThrowRuntime("a slice's step is 0");
  }
  const bool backward = by < 0;
  const int64_t from = Bound(start, backward ? size - 1 : 0, size, backward);
  const int64_t to = Bound(stop, backward ? -1 : size, size, backward);
  const int64_t distance = backward ? from - to : to - from;
  const int64_t stride = backward ? -by : by;
  return {from, by, distance <= 0 ? 0 : static_cast<size_t>((distance + stride - 1) / stride)};
}

Value SliceText(Runtime& runtime, const Value& text, const Bounds& bounds) {
  const std::string_view bytes = text.text();
  runtime.ChargeBytes(bytes.size());
  if (bounds.count == 0) return Runtime::Part({}, text.safe());
  if (bounds.step == 1) {
    const size_t begin = ByteOffset(bytes, static_cast<size_t>(bounds.start));
    const size_t length = ByteOffset(bytes.substr(begin), bounds.count);
    return Runtime::Part(bytes.substr(begin, length), text.safe());
  }
  std::vector<uint32_t> begins;  // of the characters
  begins.reserve(CountCharacters(bytes));
  for (size_t byte = 0; byte < bytes.size(); byte += CharacterLength(bytes[byte])) {
    begins.push_back(static_cast<uint32_t>(byte));
  }
  std::string taken;
  for (size_t i = 0; i < bounds.count; ++i) {
    const int64_t at = bounds.start + static_cast<int64_t>(i) * bounds.step;
    const size_t byte = begins[static_cast<size_t>(at)];
    taken += bytes.substr(byte, CharacterLength(bytes[byte]));
  }
  return runtime.Text(taken, text.safe());
}

Value SliceRange(Runtime& runtime, const Range& range, const Bounds& bounds) {
  // An empty or single-item range may have an end that no integer holds; nothing reads it then.
  const auto times = [](int64_t a, int64_t b) {
    return static_cast<uint64_t>(a) * static_cast<uint64_t>(b);
  };
  const uint64_t start = static_cast<uint64_t>(range.start) + times(bounds.start, range.step);
  const int64_t step = static_cast<int64_t>(times(range.step, bounds.step));
  const uint64_t stop = start + times(static_cast<int64_t>(bounds.count), step);
  return Value::Of(runtime.arena().New<Range>(static_cast<int64_t>(start),
                                              static_cast<int64_t>(stop), step, bounds.count));
}

}  // namespace

Value RangeItem(const Range& range, size_t index) {
  return Value::Int(range.start + static_cast<int64_t>(index) * range.step);
}

std::optional<Value> Item(Runtime& runtime, const Value& value, const Value& key) {
  if (value.Is(Kind::kUndefined)) ThrowUndefined(value);
  if (value.Is(Kind::kDict)) {
    if (key.Is(Kind::kList) || key.Is(Kind::kDict)) return std::nullopt;
    const DictEntry* entry = Find(runtime, value.dict(), key);
    if (entry == nullptr) return std::nullopt;
    return entry->value;
  }
  if (!key.IsInteger()) return std::nullopt;
  if (value.IsSequence()) {
    const auto at = Position(key.integer(), value.list().size);
    if (!at) return std::nullopt;
    return value.list().items[*at];
  }
  if (value.Is(Kind::kString)) return Character(runtime, value, key.integer());
  if (value.Is(Kind::kRange)) {
    const auto at = Position(key.integer(), value.range().size);
    if (!at) return std::nullopt;
    return RangeItem(value.range(), *at);
  }
  return std::nullopt;
}

Value Slice(Runtime& runtime, const Value& value, const Value& start, const Value& stop,
            const Value& step) {
  if (value.Is(Kind::kUndefined)) ThrowUndefined(value);
  if (!value.Is(Kind::kString) && !value.IsSequence() && !value.Is(Kind::kRange)) {
    // Jinja catches the TypeError: what comes out is undefined.
    return runtime.Undefined(UndefinedInfo::How::kHint, {},
                             runtime.Text(Concat("a ", TypeName(value), " has no slices")));
  }
  const Bounds bounds = SliceBounds(Length(runtime, value), start, stop, step);
  if (value.Is(Kind::kString)) return SliceText(runtime, value, bounds);
  if (value.Is(Kind::kRange)) return SliceRange(runtime, value.range(), bounds);
  runtime.CheckItems(bounds.count);
  Value* items = runtime.arena().Array<Value>(bounds.count);
  for (size_t i = 0; i < bounds.count; ++i) {
    const int64_t at = bounds.start + static_cast<int64_t>(i) * bounds.step;
    items[i] = value.list().items[static_cast<size_t>(at)];
  }
  return Value::Of(runtime.arena().New<List>(items, bounds.count), value.Is(Kind::kTuple));
}

}  // namespace sparsekv::chat
