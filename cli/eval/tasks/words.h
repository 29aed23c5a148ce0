#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cli/recall/seeded_random.h"

// Words, numbers and ids that generated tasks are made of. The same for one seed on every machine.
namespace sparsekv {

std::span<const char* const> Nouns();
std::span<const char* const> Adjectives();

// `count` different keys: nouns while they last, then an adjective and a noun with `joint` between.
// REQUIRES: count <= MostKeys().
std::vector<std::string> DrawKeys(uint32_t count, const std::string& joint, SeededRandom& random);
uint32_t MostKeys();
// Always of two words.
std::vector<std::string> DrawPairs(uint32_t count, const std::string& joint, SeededRandom& random);

// `digits` digits, the first not 0.
std::string DrawNumber(uint32_t digits, SeededRandom& random);
// Letters a .. z, or A .. Z.
std::string DrawLetters(uint32_t count, bool upper, SeededRandom& random);
// 8-4-4-4-12 hexadecimal digits of version 4.
std::string DrawUuid(SeededRandom& random);

}  // namespace sparsekv
