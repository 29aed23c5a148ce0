#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "kv_store/client.h"
#include "kv_store/gather_server.h"

// For tests: sequences whose every row is known, and a store's gather side with no store around it.
namespace sparsekv::kv_store {

inline constexpr uint64_t kTestFingerprint = 0xabc;

// What row (layer, owner, KV head, position) holds: one number, in every word.
inline uint64_t RowValue(uint32_t layer, uint64_t owner, uint32_t kv_head, uint32_t position) {
  return (owner << 40) + (uint64_t{layer} << 34) + (uint64_t{kv_head} << 28) + position + 1;
}

// Writes the row word by word, so that a copy that is made meanwhile is a mixture of whole words.
inline void WriteRow(std::byte* row, size_t row_bytes, uint64_t value) {
  for (size_t i = 0; i < row_bytes / sizeof value; ++i) {
    std::atomic_ref(reinterpret_cast<uint64_t*>(row)[i]).store(value, std::memory_order_relaxed);
  }
}
inline bool RowIs(const std::byte* row, size_t row_bytes, uint64_t value) {
  for (size_t i = 0; i < row_bytes / sizeof value; ++i) {
    if (reinterpret_cast<const uint64_t*>(row)[i] != value) return false;
  }
  return true;
}

// Where a row lies in a pool at `rows`.
inline std::byte* RowAt(std::byte* rows, const RowLayout& layout, uint32_t layer, RowRef ref) {
  return rows + layout.BlockOffset(layer, ref.block) + layout.RowOffset(ref.kv_head, ref.token);
}

// Stamps a block of a layer with `valid` rows, in the order that a worker keeps to.
inline void Stamp(std::byte* rows, const RowLayout& layout, uint32_t layer, uint32_t block,
                  uint64_t owner, uint32_t generation, uint32_t first_position, uint32_t valid) {
  RowStamp& stamp = StampsOf(rows, layout)[size_t{layer} * layout.blocks + block];
  stamp.tag = 0;
  stamp.owner = owner;
  stamp.fingerprint = kTestFingerprint;
  stamp.layer = layer;
  stamp.first_position = first_position;
  stamp.tag = MakeTag(generation, valid);
}

// Fills the first `tokens` rows of a grant in every layer and KV head, as a worker would.
inline void WriteSequence(std::byte* rows, const RowLayout& layout, const BlockGrant& grant,
                          uint64_t owner, uint32_t tokens) {
  for (uint32_t layer = 0; layer < layout.layers; ++layer) {
    for (uint32_t i = 0; i * kBlockTokens < tokens; ++i) {
      const uint32_t block = grant.blocks[i], generation = grant.generations[i];
      const uint32_t first = i * kBlockTokens, count = std::min(kBlockTokens, tokens - first);
      Stamp(rows, layout, layer, block, owner, generation, first, 0);
      for (uint16_t head = 0; head < layout.kv_heads; ++head) {
        for (uint16_t token = 0; token < count; ++token) {
          WriteRow(RowAt(rows, layout, layer, {block, generation, head, token}), layout.row_bytes(),
                   RowValue(layer, owner, head, first + token));
        }
      }
      Stamp(rows, layout, layer, block, owner, generation, first, count);
    }
  }
}

inline RowRef RefOf(const BlockGrant& grant, uint32_t kv_head, uint32_t position) {
  return {.block = grant.blocks[position / kBlockTokens],
          .generation = grant.generations[position / kBlockTokens],
          .kv_head = static_cast<uint16_t>(kv_head),
          .token = static_cast<uint16_t>(position % kBlockTokens)};
}

// What a worker gets of an offer: duplicates, as the attach socket makes them.
inline GatherClient::Fds Duplicates(const GatherServer::Offer& offer) {
  return {.memory = UniqueFd(dup(offer.memory_fd)),
          .doorbell = UniqueFd(dup(offer.doorbell_fd)),
          .completion = UniqueFd(dup(offer.completion_fd))};
}

// Another look at the gather memory of an offer, for what no worker should write there.
struct RawGather {
  RawGather(const GatherServer::Offer& offer, size_t row_bytes)
      : memory(*Mapping::OfFile(offer.memory_fd, *FileBytes(offer.memory_fd),
                                Mapping::Access::kReadWrite)),
        view(memory.data(), {.slots = reinterpret_cast<GatherHeader*>(memory.data())->slots,
                             .row_bytes = row_bytes}) {}
  Mapping memory;
  GatherView view;
};

}  // namespace sparsekv::kv_store
