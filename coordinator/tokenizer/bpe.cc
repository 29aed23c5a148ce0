#include "coordinator/tokenizer/bpe.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/concat.h"
#include "coordinator/tokenizer/byte_alphabet.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::tokenizer {
namespace {

constexpr uint32_t kNone = UINT32_MAX;
constexpr size_t kMaxWordBytes = size_t{1} << 31;

uint64_t PairKey(uint32_t left, uint32_t right) { return (uint64_t{left} << 32) | right; }

// Orders the heap: the lowest rank on top, then the leftmost pair.
constexpr auto kLater = [](const auto& a, const auto& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
};

}  // namespace

Bpe::Bpe(TokenIds vocabulary, const std::vector<Merge>& merges, const BpeOptions& options)
    : vocabulary_(std::move(vocabulary)), options_(options), byte_ids_(256, kNone) {
  CHECK_LT(merges.size(), size_t{kNone});
  merges_.reserve(merges.size());
  for (uint32_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    merges_[PairKey(merge.left, merge.right)] = {rank, merge.result};
  }
  for (int byte = 0; byte < 256; ++byte) {
    const std::string token = options_.byte_symbols
                                  ? std::string(1, static_cast<char>(byte))
                                  : FallbackTokenOfByte(static_cast<uint8_t>(byte));
    const auto found = vocabulary_.find(token);
    if (found != vocabulary_.end()) byte_ids_[byte] = found->second;
  }
}

absl::Status Bpe::EncodeWord(std::string_view word, Buffers* buffers,
                             std::vector<uint32_t>* ids) const {
  CHECK_LT(word.size(), kMaxWordBytes);
  if (options_.ignore_merges) {
    const auto whole = vocabulary_.find(word);
    if (whole != vocabulary_.end()) {
      ids->push_back(whole->second);
      return absl::OkStatus();
    }
  }
  absl::Status status = MakeSymbols(word, buffers);
  if (!status.ok() || buffers->symbols.empty()) return status;
  MergeAll(buffers);
  // The first symbol is never the right half of a merge, so the list starts there.
  for (uint32_t at = 0; at != kNone; at = buffers->symbols[at].next) {
    ids->push_back(buffers->symbols[at].id);
  }
  return absl::OkStatus();
}

absl::Status Bpe::MakeSymbols(std::string_view word, Buffers* buffers) const {
  auto& symbols = buffers->symbols;
  symbols.clear();
  bool after_unknown = false;
  while (!word.empty()) {
    const size_t length = options_.byte_symbols ? 1 : FirstUtf8Char(word).length;
    const std::string_view character = word.substr(0, length);
    word.remove_prefix(length);
    const bool was_after_unknown = std::exchange(after_unknown, false);
    if (options_.byte_symbols) {
      const uint32_t id = byte_ids_[static_cast<uint8_t>(character[0])];
      if (id != kNone) {
        symbols.push_back({id, 0, 0});
        continue;
      }
    } else if (const auto found = vocabulary_.find(character); found != vocabulary_.end()) {
      symbols.push_back({found->second, 0, 0});
      continue;
    }
    if (options_.byte_fallback && AppendFallback(character, buffers)) continue;
    if (!options_.unk) {
      std::string shown;
      for (const char byte : character) shown += FallbackTokenOfByte(static_cast<uint8_t>(byte));
      return absl::InvalidArgumentError(Concat("the tokenizer has no token for ", shown));
    }
    after_unknown = true;
    if (!was_after_unknown || !options_.fuse_unk) symbols.push_back({*options_.unk, 0, 0});
  }
  const uint32_t count = static_cast<uint32_t>(symbols.size());
  for (uint32_t i = 0; i < count; ++i) {
    symbols[i].previous = i == 0 ? kNone : i - 1;
    symbols[i].next = i + 1 == count ? kNone : i + 1;
  }
  return absl::OkStatus();
}

bool Bpe::AppendFallback(std::string_view character, Buffers* buffers) const {
  for (const char byte : character) {
    if (byte_ids_[static_cast<uint8_t>(byte)] == kNone) return false;
  }
  for (const char byte : character) {
    buffers->symbols.push_back({byte_ids_[static_cast<uint8_t>(byte)], 0, 0});
  }
  return true;
}

void Bpe::MergeAll(Buffers* buffers) const {
  auto& symbols = buffers->symbols;
  auto& heap = buffers->candidates;
  heap.clear();
  for (uint32_t left = 0; left + 1 < symbols.size(); ++left) {
    if (const RankedResult* merge = FindMerge(symbols[left].id, symbols[left + 1].id)) {
      heap.push_back({merge->rank, left, merge->result});
    }
  }
  std::make_heap(heap.begin(), heap.end(), kLater);
  const auto add = [&](uint32_t left, uint32_t right) {
    if (const RankedResult* merge = FindMerge(symbols[left].id, symbols[right].id)) {
      heap.push_back({merge->rank, left, merge->result});
      std::push_heap(heap.begin(), heap.end(), kLater);
    }
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), kLater);
    const Buffers::Candidate best = heap.back();
    heap.pop_back();
    Buffers::Symbol& left = symbols[best.left];
    if (left.id == kNone || left.next == kNone) continue;
    Buffers::Symbol& right = symbols[left.next];
    // Neighbours may have changed since. What counts is that the pair still becomes the same token,
    // even out of other halves: that is the order Hugging Face's tokenizers merge in.
    const RankedResult* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->result != best.result) continue;
    left.id = best.result;
    left.next = right.next;
    right.id = kNone;
    if (left.next != kNone) symbols[left.next].previous = best.left;
    if (left.previous != kNone) add(left.previous, best.left);
    if (left.next != kNone) add(best.left, left.next);
  }
}

const Bpe::RankedResult* Bpe::FindMerge(uint32_t left, uint32_t right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

}  // namespace sparsekv::tokenizer
