// What templates may not do, and the line that says so. What they do is in golden_test.cc.
#include "coordinator/chat/template.h"

#include <gtest/gtest.h>

#include <string>

#include "base/concat.h"

namespace sparsekv::chat {
namespace {

std::string Render(const std::string& source, std::string_view messages = "[]",
                   const TemplateLimits& limits = {}) {
  const auto parsed = Template::Parse(source, limits);
  if (!parsed.ok()) return std::string(parsed.status().message());
  ErrorKind kind = ErrorKind::kSyntax;
  const auto text = (*parsed)->Render({.messages = messages}, &kind);
  if (text.ok()) return *text;
  EXPECT_EQ(absl::IsInvalidArgument(text.status()), true) << text.status();
  return std::string(text.status().message());
}

std::string Repeat(std::string_view part, size_t times) {
  std::string text;
  for (size_t i = 0; i < times; ++i) text += part;
  return text;
}

TEST(Template, SaysWhatIsWrongAndWhere) {
  struct Case {
    const char *source, *error;
  };
  for (const Case& c : std::initializer_list<Case>{
           {"a\n{% if x %}", "line 2: the block of line 2 has no endif"},
           {"{{ 1", "line 1: the template ends before the end of print statement"},
           {"\n{{ (1 }}", "line 2: unexpected '}'"},
           {"{% nothing %}", "line 1: unknown or misplaced tag 'nothing'"},
           {"{% endif %}", "line 1: unknown or misplaced tag 'endif'"},
           {"{% block a %}{% endblock %}", "line 1: {% block %} is not supported"},
           {"{% include 'a' %}", "line 1: {% include %} is not supported"},
           {"{% for a in b recursive %}{% endfor %}", "line 1: recursive loops are not supported"},
           {"{# a", "line 1: the comment has no end"},
           {"{% raw %}", "line 1: the raw block has no end"},
           {"{{ 'a }}", "line 1: a string has no end"},
           {"{{ '\\N{DASH}' }}", "line 1: a string has an escape that is not supported"},
           {"{{ '\\ud800' }}", "line 1: a string has an escape that is not supported"},
           {"{{ 9223372036854775808 }}", "line 1: the number 9223372036854775808 leaves 64 bits"},
           {"{{ a ? b }}", "line 1: unexpected character '?'"},
           {"{{ é }}", "line 1: unexpected character 'é'"},
           {"{% break %}", "line 1: 'break' is in no loop"},
           {"\n\n{{ a.b }}", "line 3: 'a' is undefined"},
           {"{{ messages.a.b }}", "line 1: 'list object' has no attribute 'a'"},
           {"{{ messages[3].b }}", "line 1: list object has no element 3"},
           {"{{ a | nothing }}", "line 1: the filter 'nothing' is not supported"},
           {"{{ a is nothing }}", "line 1: the test 'nothing' is not supported"},
           {"{{ 'a'.swapcase() }}", "line 1: str.swapcase is not supported"},
           {"{{ messages.append(1) }}", "line 1: 'append' of a list is not allowed in templates"},
           {"{{ {}.update({}) }}", "line 1: 'update' of a dict is not allowed in templates"},
           {"{{ ''.__class__ }}{{ ''.__class__.__mro__ }}",
            "line 1: 'str object' has no attribute '__class__'"},
           {"{{ cycler(1) }}", "line 1: the function 'cycler' is not supported"},
           {"{{ self }}", "line 1: 'self' is not supported"},
           {"{{ 1 + 'a' }}", "line 1: unsupported operands for +: 'int' and 'str'"},
           {"{{ 1 < 'a' }}", "line 1: 'int' and 'str' cannot be ordered"},
           {"{{ 1 // 0 }}", "line 1: division by zero"},
           {"{{ 2 ** 63 }}", "line 1: an integer leaves 64 bits"},
           {"{{ -9223372036854775807 - 2 }}", "line 1: an integer leaves 64 bits"},
           {"{% macro m(a) %}{% endmacro %}\n{{ m(1, 2) }}",
            "line 2: the macro 'm' takes at most 1 arguments"},
           {"{% set a.b = 1 %}", "line 1: 'a' is no namespace: its attribute 'b' cannot be set"},
           {"{% set a, b = [1] %}", "line 1: 1 values for 2 names"},
           {"{{ messages | map('upper') }}", "line 1: a generator cannot be written"},
           {"{{ raise_exception('no\nway') }}", "line 1: no way"},
       }) {
    EXPECT_EQ(Render(c.source), c.error) << c.source;
  }
}

TEST(Template, RefusesInputThatIsNoJson) {
  EXPECT_EQ(Render("", "[1"), "messages: is not JSON (byte 3)");
  EXPECT_EQ(Render("", "{}"), "messages: is no list");
  EXPECT_EQ(Render("", "[18446744073709551615]"), "messages: an integer leaves 64 bits");
  EXPECT_EQ(Render("", "[100000000000000000000]"), "messages: an integer leaves 64 bits");
  EXPECT_EQ(Render("", Repeat("[", 1000)), "messages: is nested deeper than 100");
  EXPECT_EQ(Render("{{ messages }}", R"([{"a": 1, "b": 2, "a": 3}])"), "[{'a': 3, 'b': 2}]");
  EXPECT_EQ(Render("\xff"), "byte 0 is not UTF-8");
}

TEST(Template, VariablesWin) {
  const auto parsed = Template::Parse("{{ bos_token }}{{ tools }}{{ x }}").value();
  EXPECT_EQ(parsed
                ->Render({.tools = "[]",
                          .variables = R"({"bos_token": "B", "x": 1})",
                          .special_tokens = {{"bos_token", "A"}}})
                .value(),
            "B[]1");
}

// Each ends soon, with the limit's error, whatever it asks for.
TEST(Template, BombsEndInALimit) {
  const std::string over = "the template is over its limit: ";
  for (const auto& [source, limit] : std::initializer_list<std::pair<std::string, std::string>>{
           {"{{ 'x' * 10 ** 9 }}", "output_bytes"},
           {"{{ [0] * 10 ** 9 }}", "items"},
           {"{{ range(10 ** 9) }}", "items of a range (100000)"},
           {"{{ 'x'.ljust(10 ** 9) }}", "output_bytes"},
           {"{{ '%999999999d' % 1 }}{{ 'x' * 10 ** 8 }}", "output_bytes"},
           {"{% set ns = namespace(s='x') %}{% for i in range(99) %}"
            "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "output_bytes"},
           {"{% set ns = namespace(s=[0]) %}{% for i in range(99) %}"
            "{% set ns.s = ns.s + ns.s %}{% endfor %}",
            "items"},
           {"{% set ns = namespace(s=[0]) %}{% for i in range(99999) %}"
            "{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
            "depth"},
           {"{% set ns = namespace(s=[0]) %}{% for i in range(99999) %}"
            "{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s | tojson }}",
            "depth"},
           {"{% set ns = namespace(s=[0], t=[0]) %}{% for i in range(99999) %}"
            "{% set ns.s = [ns.s] %}{% set ns.t = [ns.t] %}{% endfor %}{{ ns.s == ns.t }}",
            "depth"},
           {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "depth"},
           {"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "steps"},
           {"{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "output_bytes"},
           {"{% for a in range(99999) %}{% set b = 'x' * 99999 %}{% endfor %}", "memory_bytes"},
           {"{% set s = 'ab' * 4000000 %}{% for a in range(99999) %}{% set n = s | length %}"
            "{% endfor %}",
            "steps"},
           {"{% set s = 'a' * 8000000 %}{{ s.rfind('b' ~ s[:4000000]) }}", "steps"},
           {"{% for i in range(99999) %}{% for j in range(9) %}{% macro m() %}{% endmacro %}"
            "{% endfor %}{% endfor %}",
            "scopes that macros keep"},
           {"{{ " + Repeat("(", 5000) + "1" + Repeat(")", 5000) + " }}", "parse_depth"},
           {"{{ " + Repeat("not ", 5000) + "1 }}", "parse_depth"},
           {"{{ " + Repeat("-", 5000) + "1 }}", "parse_depth"},
           {"{{ " + Repeat("1 if 1 else ", 5000) + "1 }}", "parse_depth"},
           {"{{ " + Repeat("[", 5000) + Repeat("]", 5000) + " }}", "parse_depth"},
           {"{% for " + Repeat("(", 5000) + "a" + Repeat(")", 5000) + " in b %}", "parse_depth"},
           {Repeat("{% if 1 %}", 5000) + Repeat("{% endif %}", 5000), "parse_depth"},
           {"{{ 1" + Repeat(" + 1", 5000) + " }}", "depth"},
           {"{{ ''" + Repeat(" | trim", 5000) + " }}", "depth"},
           {Repeat("x", (1 << 20) + 1), "source_bytes"},
       }) {
    const std::string error = Render(source);
    EXPECT_TRUE(error.ends_with(over + limit)) << source.substr(0, 100) << ": " << error;
  }
}

// What costs by the length of a name, of a path or of how many names there are is paid for.
TEST(Template, LongNamesAndManyOfThemArePaidFor) {
  const std::string often = "{% for i in range(99999) %}{% for j in range(99999) %}";
  const std::string end = "{% endfor %}{% endfor %}";
  const std::string text = "{% set s = 'a' * 16000000 %}";
  std::string names, values;
  for (int i = 0; i < 60'000; ++i) {
    names += Concat(i ? "," : "", "a", i);
    values += Concat(i ? "," : "", "a", 60'000 - i, "=1");
  }
  std::string assignments;
  for (int i = 0; i < 25'000; ++i) assignments += Concat("{% set a", i, "=1 %}");
  for (const std::string& source : std::initializer_list<std::string>{
           text + "{% set ns = namespace({s: 1}) %}" + often + "{{ ns[s] }}" + end,
           text + often + "{{ ''[s] }}" + end,
           text + often + "{{ '' | attr(s) }}" + end,
           text + often + "{{ s is filter or s is test }}" + end,
           text + often + "{{ s.removeprefix(s) }}{{ s.removesuffix(s) }}" + end,
           "{% set s = '0' * 16000000 %}" + often + "{{ s | int }}" + end,
           "{% set s = '0' * 16000000 %}" + often + "{{ s | float }}" + end,
           "{% set s = '{' ~ '0' * 16000000 ~ '}' %}" + often + "{{ s.format('') }}" + end,
           "{% set s = '%' ~ '0' * 16000000 ~ 's' %}" + often + "{{ s % '' }}" + end,
           text + often +
               "{% set d = {s:1,s:1,s:1,s:1,s:1,s:1,s:1,s:1,s:1,s:1,s:1,s:1,s:1,s:1,s:1,"
               "s:1,s:1,s:1} %}" +
               end,
           "{% set ns = namespace(l=['']) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}"
           "{% endfor %}{{ ([ns.l] * 99999) | map(attribute='0.' * 99998 ~ '0') | list | length }}",
           often + "{% set x = strftime_now('%Y') %}" + end,
           "{% macro m(" + names + ") %}{% endmacro %}{{ m(" + values + ") }}",
           assignments + often + assignments + end,
       }) {
    const std::string error = Render(source);
    EXPECT_TRUE(error.ends_with("over its limit: steps")) << source.substr(0, 200) << ": " << error;
  }
}

// Nothing that is made on the way is larger than the limits.
TEST(Template, WhatIsMadeOnTheWayIsLimited) {
  const std::string over = "the template is over its limit: ";
  for (const auto& [source, limit] : std::initializer_list<std::pair<std::string, std::string>>{
           {"{{ ('\n' * 16000000).splitlines() }}", "items"},
           {"{{ (',' * 16000000).split(',') }}", "items"},
           {"{{ (',' * 16000000).rsplit(',', 9999999) }}", "items"},
           {"{{ ('a ' * 8000000).split() }}", "items"},
           {"{{ ('a ' * 8000000).rsplit() }}", "items"},
           {"{{ ('\n' * 8000000) | indent }}", "items"},
           {"{% macro m(s) %}{{ s }}{{ m(s) }}{% endmacro %}{{ m('a' * 15000000) }}",
            "memory_bytes"},
       }) {
    const std::string error = Render(source);
    EXPECT_TRUE(error.ends_with(over + limit)) << source.substr(0, 100) << ": " << error;
  }
  EXPECT_EQ(Render("{{ ('é😀a' * 5)[::-2] }}"), "aé😀aé😀aé");
  TemplateLimits limits;
  limits.items = 3;
  EXPECT_EQ(Render("{{ 'a,b,c'.split(',') | length }}{{ 'a\nb\nc'.splitlines() | length }}"
                   "{{ ' a b c '.split() | length }}{{ 'a b c'.rsplit() | length }}"
                   "{{ 'a,b,c'.rsplit(',') | length }}{{ 'a\nb\nc' | indent }}",
                   "[]", limits),
            "33333a\n    b\n    c");
}

// `count` takes its argument by name too; no exception of the standard library leaves the folder.
TEST(Template, CountTakesANamedArgument) {
  EXPECT_EQ(Render("{{ 'banana'.count(sub='an') }}{{ 'banana'.count('a', 2) }}"), "22");
}

TEST(Template, FloatsOutOfRange) {
  EXPECT_EQ(Render("{{ 1e999 }} {{ 1e-999 }} {{ 1.5e3 }}"), "inf 0.0 1500.0");
}

// `loop` may be kept beyond its block; the scopes that its condition read are gone then.
TEST(Template, AKeptLoopHasNoMoreItems) {
  EXPECT_EQ(Render("{% set ns = namespace() %}{% for a in [1] %}"
                   "{% for b in [1, 2, 3] if b != z %}{% set ns.l = loop %}{% break %}{% endfor %}"
                   "{% endfor %}{{ ns.l.index }}{{ ns.l.last }}{{ ns.l.length }}"),
            "1True1");
  EXPECT_EQ(Render("{% set ns = namespace() %}{% for a in [1, 2] %}{% set ns.l = loop %}{% break %}"
                   "{% endfor %}{{ ns.l.last }}{{ ns.l.length }}"),
            "False2");
}

TEST(Template, LimitsAreParameters) {
  TemplateLimits limits;
  limits.steps = 100;
  EXPECT_EQ(Render("{% for i in range(50) %}{{ i }}{% endfor %}", "[]", limits),
            "line 1: the template is over its limit: steps");
  limits = {};
  limits.output_bytes = 4;
  EXPECT_EQ(Render("12345", "[]", limits), "line 1: the template is over its limit: output_bytes");
  EXPECT_EQ(Render("1234", "[]", limits), "1234");
}

// A dictionary with many keys is looked up by its index, a small one entry by entry.
TEST(Template, LargeDictionariesKeepTheirKeys) {
  std::string json = "[{";
  for (int i = 0; i < 5000; ++i) json += Concat(i ? "," : "", "\"k", i, "\":", i);
  json += ",\"k7\":-7}]";
  EXPECT_EQ(Render("{{ messages[0].k4999 }} {{ messages[0].k7 }} {{ messages[0] | length }} "
                   "{{ messages[0].k5000 is defined }} {{ 1 in messages[0] }}",
                   json),
            "4999 -7 5000 False False");
}

// A macro may outlive the block that defined it.
TEST(Template, MacrosKeepTheirScope) {
  EXPECT_EQ(Render("{% set ns = namespace() %}{% for i in range(3) %}{% macro m() %}{{ i }}"
                   "{% endmacro %}{% if i == 1 %}{% set ns.m = m %}{% endif %}{% endfor %}"
                   "{% for j in range(9) %}{% endfor %}{{ ns.m() }}"),
            "1");
}

// A namespace may hold itself.
TEST(Template, CyclesAreFreed) {
  EXPECT_EQ(Render("{% set ns = namespace() %}{% set ns.ns = ns %}{{ ns.ns.ns is defined }}"),
            "True");
  EXPECT_EQ(Render("{% set ns = namespace() %}{% set ns.l = [ns] %}{{ ns.l == ns.l }}"), "True");
}

}  // namespace
}  // namespace sparsekv::chat
