// str() and repr() of values.
#include "base/concat.h"
#include "coordinator/chat/operators.h"
#include "coordinator/chat/text.h"

namespace sparsekv::chat {

using Kind = Value::Kind;

namespace {

void AppendItems(Runtime& runtime, const List& list, std::string* out) {
  for (const Value& item : list) {
    if (&item != list.begin()) *out += ", ";
    AppendRepr(runtime, item, out);
  }
}

void AppendDict(Runtime& runtime, const Dict& dict, std::string* out) {
  *out += '{';
  for (const DictEntry& entry : dict) {
    if (&entry != dict.begin()) *out += ", ";
    AppendRepr(runtime, entry.key, out);
    *out += ": ";
    AppendRepr(runtime, entry.value, out);
  }
  *out += '}';
}

void AppendView(Runtime& runtime, const Value& value, std::string* out) {
  const DictView& view = value.view();
  *out += TypeName(value) + "([";
  for (const DictEntry& entry : *view.dict) {
    if (&entry != view.dict->begin()) *out += ", ";
    if (view.what == DictView::What::kItems) *out += '(';
    if (view.what != DictView::What::kValues) AppendRepr(runtime, entry.key, out);
    if (view.what == DictView::What::kItems) *out += ", ";
    if (view.what != DictView::What::kKeys) AppendRepr(runtime, entry.value, out);
    if (view.what == DictView::What::kItems) *out += ')';
  }
  *out += "])";
}

void AppendRange(const Range& range, std::string* out) {
  *out += Concat("range(", range.start, ", ", range.stop);
  if (range.step != 1) *out += Concat(", ", range.step);
  *out += ')';
}

void AppendString(const Value& value, std::string* out) {
  if (value.safe()) *out += "Markup(";
  AppendRepr(value.text(), out);
  if (value.safe()) *out += ')';
}

}  // namespace

void AppendRepr(Runtime& runtime, const Value& value, std::string* out) {
  const Runtime::Depth depth(runtime);
  runtime.Charge();
  const size_t before = out->size();
  switch (value.kind()) {
    case Kind::kUndefined:
      *out += "Undefined";
      break;
    case Kind::kNone:
      *out += "None";
      break;
    case Kind::kBool:
      *out += value.boolean() ? "True" : "False";
      break;
    case Kind::kInt:
      *out += std::to_string(value.integer());
      break;
    case Kind::kFloat:
      *out += FloatRepr(value.floating());
      break;
    case Kind::kString:
      AppendString(value, out);
      break;
    case Kind::kList:
      *out += '[';
      AppendItems(runtime, value.list(), out);
      *out += ']';
      break;
    case Kind::kTuple:
      *out += '(';
      AppendItems(runtime, value.list(), out);
      *out += value.list().size == 1 ? ",)" : ")";
      break;
    case Kind::kDict:
      AppendDict(runtime, value.dict(), out);
      break;
    case Kind::kView:
      AppendView(runtime, value, out);
      break;
    case Kind::kRange:
      AppendRange(value.range(), out);
      break;
    default:  // Python would write an address
      Throw(ErrorKind::kUnsupported, Concat("a ", TypeName(value), " cannot be written"));
  }
  runtime.ChargeBytes(out->size() - before);
  if (out->size() > runtime.limits().output_bytes) ThrowLimit("output_bytes");
}

std::string_view Str(Runtime& runtime, const Value& value) {
  if (value.Is(Kind::kString)) return value.text();
  if (value.Is(Kind::kUndefined)) return {};
  std::string text;
  AppendRepr(runtime, value, &text);
  return runtime.Text(text).text();
}

}  // namespace sparsekv::chat
