#pragma once

#include <string_view>

#include "coordinator/chat/arguments.h"
#include "coordinator/chat/value.h"

// What templates find there: Jinja's filters and tests, Python's methods, the functions that
// transformers adds. Each throws kUnsupported for a name that we do not have.
namespace sparsekv::chat {

class Interpreter;

Value ApplyFilter(Interpreter& interpreter, std::string_view name, const Value& input,
                  const Arguments& arguments);
bool HasFilter(std::string_view name);

bool ApplyTest(Interpreter& interpreter, std::string_view name, const Value& value,
               const Arguments& arguments);
bool HasTest(std::string_view name);

// Whether Python has this method of the value; calling it may still be more than we have.
bool HasMethod(const Value& value, std::string_view name);
// Whether the sandbox keeps it from templates: list.append, dict.update, ...
bool IsForbidden(const Value& value, std::string_view name);
Value CallMethod(Interpreter& interpreter, const Value& self, std::string_view name,
                 const Arguments& arguments);

bool HasFunction(std::string_view name);
Value CallFunction(Interpreter& interpreter, std::string_view name, const Arguments& arguments);

// a.b.0.c of a value, as the filters' `attribute` has it.
Value Path(Interpreter& interpreter, const Value& value, const Value& path);

}  // namespace sparsekv::chat
