#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "coordinator/chat/runtime.h"
#include "coordinator/chat/value.h"

// Python's operators over values. What Python would raise is thrown.
namespace sparsekv::chat {

enum class BinaryOp { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow };
enum class CompareOp { kEq, kNe, kLt, kLe, kGt, kGe, kIn, kNotIn };

std::string TypeName(const Value& value);
std::string UndefinedMessage(const Value& value);
[[noreturn]] void ThrowUndefined(const Value& value);
size_t HashText(std::string_view text);
void CheckHashable(const Value& key);

bool Truth(const Value& value);
bool Equal(Runtime& runtime, const Value& a, const Value& b);
bool Less(Runtime& runtime, const Value& a, const Value& b);  // a < b
bool Compare(Runtime& runtime, CompareOp op, const Value& a, const Value& b);
bool Contains(Runtime& runtime, const Value& container, const Value& item);
Value Arithmetic(Runtime& runtime, BinaryOp op, const Value& a, const Value& b);
Value Negate(const Value& value);
int64_t Truncate(double value);  // throws where no 64-bit integer holds it

size_t Length(Runtime& runtime, const Value& value);
const DictEntry* Find(Runtime& runtime, const Dict& dict, const Value& key);
Value RangeItem(const Range& range, size_t index);
// value[key], nothing where Python would raise TypeError or LookupError.
std::optional<Value> Item(Runtime& runtime, const Value& value, const Value& key);
Value Slice(Runtime& runtime, const Value& value, const Value& start, const Value& stop,
            const Value& step);

// str(value) and repr(value); floats as Python writes them.
std::string_view Str(Runtime& runtime, const Value& value);
void AppendRepr(Runtime& runtime, const Value& value, std::string* out);

}  // namespace sparsekv::chat
