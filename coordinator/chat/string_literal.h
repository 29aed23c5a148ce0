#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace sparsekv::chat {

// The value of a string literal, given what is between its quotes: Python's escapes, but for names
// of characters. Nothing for one that is broken or stands for no character.
std::optional<std::string> Unescape(std::string_view literal);

}  // namespace sparsekv::chat
