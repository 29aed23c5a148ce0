#include "coordinator/chat/json.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/concat.h"
#include "coordinator/chat/operators.h"
#include "coordinator/chat/text.h"

namespace sparsekv::chat {

using Kind = Value::Kind;

namespace {

// Builds values from the parser's events; its stack is no deeper than kMaxJsonDepth.
class Builder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  Builder(Runtime* runtime, std::string_view what) : runtime_(*runtime), what_(what) {}

  Value root() const { return root_; }

  bool null() override { return Add(Value::None()); }
  bool boolean(bool value) override { return Add(Value::Bool(value)); }
  bool number_integer(int64_t value) override { return Add(Value::Int(value)); }
  bool number_unsigned(uint64_t value) override {
    if (value > INT64_MAX) Fail("an integer leaves 64 bits");
    return Add(Value::Int(static_cast<int64_t>(value)));
  }
  bool number_float(double value, const std::string& text) override {
    if (text.find_first_of(".eE") == std::string::npos) Fail("an integer leaves 64 bits");
    return Add(Value::Float(value));
  }
  bool string(std::string& value) override { return Add(runtime_.Text(value)); }
  bool binary(nlohmann::json::binary_t&) override { return false; }
  bool start_object(size_t) override { return Open(true); }
  bool start_array(size_t) override { return Open(false); }
  bool key(std::string& name) override {
    levels_.back().key = runtime_.Text(name);
    return true;
  }
  bool end_object() override {
    const Value made = runtime_.MakeDict(levels_.back().entries);
    levels_.pop_back();
    return Add(made);
  }
  bool end_array() override {
    const Value made = runtime_.MakeList(levels_.back().items);
    levels_.pop_back();
    return Add(made);
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    Fail(Concat("is not JSON (byte ", position, ")"));
  }

 private:
  struct Level {
    bool object;
    Value key;
    std::vector<Value> items;
    std::vector<DictEntry> entries;
  };

  [[noreturn]] void Fail(std::string_view message) const {
    ThrowRuntime(Concat(what_, ": ", message));
  }
  bool Open(bool object) {
    if (levels_.size() == kMaxJsonDepth) {
      Fail(Concat("is nested deeper than ", kMaxJsonDepth));
    }
    levels_.push_back({object, {}, {}, {}});
    return true;
  }
  bool Add(const Value& value) {
    if (levels_.empty()) {
      root_ = value;
      return true;
    }
    Level& level = levels_.back();
    if (level.object) {
      level.entries.push_back({level.key, value});
    } else {
      level.items.push_back(value);
    }
    if (level.items.size() + level.entries.size() > runtime_.limits().items) ThrowLimit("items");
    return true;
  }

  Runtime& runtime_;
  const std::string_view what_;
  std::vector<Level> levels_;
  Value root_;
};

class Writer {
 public:
  Writer(Runtime* runtime, const JsonFormat& format) : runtime_(*runtime), format_(format) {}

  std::string Take() { return std::move(out_); }

  void Write(const Value& value) {
    const Runtime::Depth depth(runtime_);
    runtime_.Charge();
    switch (value.kind()) {
      case Kind::kNone:
        out_ += "null";
        break;
      case Kind::kBool:
        out_ += value.boolean() ? "true" : "false";
        break;
      case Kind::kInt:
        out_ += std::to_string(value.integer());
        break;
      case Kind::kFloat:
        out_ += Float(value.floating());
        break;
      case Kind::kString:
        String(value.text());
        break;
      case Kind::kList:
      case Kind::kTuple:
        Array(value.list());
        break;
      case Kind::kDict:
        Object(value.dict());
        break;
      default:
        ThrowRuntime(Concat("a ", TypeName(value), " cannot be written as JSON"));
    }
    if (out_.size() > runtime_.limits().output_bytes) ThrowLimit("output_bytes");
  }

 private:
  static std::string Float(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
    return FloatRepr(value);
  }

  void NewLine() {
    if (!format_.lines) return;
    out_ += '\n';
    for (size_t i = 0; i < level_; ++i) out_ += format_.indent;
    runtime_.ChargeBytes(level_ * format_.indent.size());
  }

  void Array(const List& list) {
    out_ += '[';
    ++level_;
    for (const Value& item : list) {
      if (&item != list.begin()) out_ += format_.item_separator;
      NewLine();
      Write(item);
    }
    --level_;
    if (list.size > 0) NewLine();
    out_ += ']';
  }

  void Object(const Dict& dict) {
    std::vector<DictEntry> entries(dict.begin(), dict.end());
    if (format_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [&](const auto& a, const auto& b) { return Less(runtime_, a.key, b.key); });
    }
    out_ += '{';
    ++level_;
    for (const DictEntry& entry : entries) {
      if (&entry != entries.data()) out_ += format_.item_separator;
      NewLine();
      Key(entry.key);
      out_ += format_.key_separator;
      Write(entry.value);
    }
    --level_;
    if (!entries.empty()) NewLine();
    out_ += '}';
  }

  void Key(const Value& key) {
    if (key.Is(Kind::kString)) return String(key.text());
    if (!key.IsNumber() && !key.Is(Kind::kNone)) {
      ThrowRuntime(Concat("a ", TypeName(key), " cannot be a key of JSON"));
    }
    out_ += '"';
    Write(key);
    out_ += '"';
  }

  void Unit(unsigned unit) {
    char escaped[16];
    std::snprintf(escaped, sizeof escaped, "\\u%04x", unit);
    out_ += escaped;
  }

  void String(std::string_view text) {
    constexpr std::string_view kSpecial = "\"\\\n\r\t\b\f", kNames = "\"\\nrtbf";
    runtime_.ChargeBytes(text.size());
    out_ += '"';
    for (size_t byte = 0; byte < text.size();) {
      const size_t length = CharacterLength(text[byte]);
      const size_t special = kSpecial.find(text[byte]);
      const unsigned char first = static_cast<unsigned char>(text[byte]);
      if (special != std::string_view::npos) {
        out_ += '\\';
        out_ += kNames[special];
      } else if (first < 0x20) {
        Unit(first);
      } else if (length == 1 || !format_.ascii) {
        out_ += text.substr(byte, length);
      } else {
        const uint32_t c = CharacterAt(text, byte);
        if (c >= 0x10000) Unit(0xd800 + ((c - 0x10000) >> 10));
        Unit(c >= 0x10000 ? 0xdc00 + ((c - 0x10000) & 0x3ff) : c);
      }
      byte += length;
    }
    out_ += '"';
  }

  Runtime& runtime_;
  const JsonFormat& format_;
  std::string out_;
  size_t level_ = 0;
};

}  // namespace

Value ParseJson(Runtime& runtime, std::string_view text, std::string_view what) {
  runtime.ChargeBytes(text.size());
  Builder builder(&runtime, what);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
    ThrowRuntime(Concat(what, ": is not JSON"));
  }
  return builder.root();
}

std::string DumpJson(Runtime& runtime, const Value& value, const JsonFormat& format) {
  Writer writer(&runtime, format);
  writer.Write(value);
  return writer.Take();
}

}  // namespace sparsekv::chat
