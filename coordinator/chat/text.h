#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// Python's str over UTF-8: positions and lengths count characters. Pure functions; every text that
// goes in is valid UTF-8, and so is what comes out.
namespace sparsekv::chat {

size_t CharacterLength(char first_byte);  // bytes of the character that begins so
size_t CountCharacters(std::string_view text);
char32_t CharacterAt(std::string_view text, size_t byte);
// The byte at which character `index` begins; text.size() when there are not so many.
size_t ByteOffset(std::string_view text, size_t index);

// Where `part` first stands, or npos; in linear time whatever both hold.
size_t FindText(std::string_view text, std::string_view part);

// Without characters of `set` (white space when absent) at its ends.
std::string_view StripLeft(std::string_view text, std::optional<std::string_view> set);
std::string_view StripRight(std::string_view text, std::optional<std::string_view> set);

std::string Upper(std::string_view text);
std::string Lower(std::string_view text);
std::string Capitalize(std::string_view text);
std::string Title(std::string_view text);       // str.title
std::string TitleWords(std::string_view text);  // Jinja's filter, which cuts words elsewhere

// At most `most` cuts, any number of them when negative.
std::vector<std::string_view> SplitSpace(std::string_view text, int64_t most);
std::vector<std::string_view> Split(std::string_view text, std::string_view by, int64_t most);
std::vector<std::string_view> SplitSpaceRight(std::string_view text, int64_t most);
std::vector<std::string_view> SplitRight(std::string_view text, std::string_view by, int64_t most);
std::vector<std::string_view> SplitLines(std::string_view text, int64_t most,
                                         bool keep_ends = false);

void AppendRepr(std::string_view text, std::string* out);  // in quotes, as repr writes it
std::string FloatRepr(double value);

}  // namespace sparsekv::chat
