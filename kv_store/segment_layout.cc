#include "kv_store/segment_layout.h"

#include "base/check.h"

namespace sparsekv::kv_store {

SegmentFacts ReadFacts(const SegmentHeader& header) {
  SegmentFacts facts;
  if (header.magic.load(std::memory_order_acquire) != kSegmentMagic) return facts;
  if (header.version != kSegmentVersion) return facts;
  const uint32_t dtype = header.dtype;
  facts.segment_id = header.segment_id;
  facts.fingerprint = header.fingerprint;
  facts.pools = header.pools;
  facts.layout = RowLayout{.layers = header.layers,
                           .kv_heads = header.kv_heads,
                           .head_dim = header.head_dim,
                           .dtype = static_cast<DType>(dtype),
                           .blocks = header.blocks};
  facts.valid = dtype <= static_cast<uint32_t>(DType::kBF16) && facts.segment_id != 0 &&
                WithinLimits(facts.layout, facts.pools);
  return facts;
}

void WriteFacts(const SegmentFacts& facts, SegmentHeader* header) {
  CHECK(WithinLimits(facts.layout, facts.pools));
  CHECK_NE(facts.segment_id, 0u);
  header->version = kSegmentVersion;
  header->pools = facts.pools;
  header->segment_id = facts.segment_id;
  header->fingerprint = facts.fingerprint;
  header->layers = facts.layout.layers;
  header->kv_heads = facts.layout.kv_heads;
  header->head_dim = facts.layout.head_dim;
  header->dtype = static_cast<uint32_t>(facts.layout.dtype);
  header->blocks = facts.layout.blocks;
  header->magic.store(kSegmentMagic, std::memory_order_release);
}

bool WithinLimits(const RowLayout& layout, uint32_t pools) {
  const auto in = [](uint32_t value, uint32_t limit) { return value >= 1 && value <= limit; };
  return in(layout.layers, kMaxLayers) && in(layout.kv_heads, kMaxKvHeads) &&
         in(layout.head_dim, kMaxHeadDim) && in(layout.blocks, kMaxBlocks) && in(pools, kMaxPools);
}

}  // namespace sparsekv::kv_store
