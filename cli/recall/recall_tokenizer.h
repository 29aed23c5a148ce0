#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace sparsekv {

// Recall checkpoints speak a language of one character per token: id i is the character U+4E00 + i.
// So text and ids are one to one, without merges, splitting, special tokens or a BOS rule.

std::string RecallTokenText(uint32_t id);  // UTF-8, 3 bytes.  REQUIRES: id < kRecallVocab

std::string RecallText(std::span<const uint32_t> ids);

// The tokenizer.json that says so: a byte-pair model without merges.
std::string RecallTokenizerJson();

}  // namespace sparsekv
