#include "kv_store/segment.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace sparsekv::kv_store {
namespace {

constexpr size_t kPlenty = size_t{1} << 40;

UniqueFd Duplicate(const UniqueFd& fd) { return UniqueFd(dup(fd.get())); }

// The parent's side: it holds the memfds and starts stores on duplicates of them.
struct Parent {
  explicit Parent(uint32_t pools = 2) {
    meta = *CreateMemfd("meta");
    for (uint32_t i = 0; i < pools; ++i) rows.push_back(*CreateMemfd("rows"));
  }
  absl::StatusOr<Segment> Open(uint64_t boot_id, size_t available = kPlenty) {
    std::vector<UniqueFd> rows_fds;
    for (const UniqueFd& fd : rows) rows_fds.push_back(Duplicate(fd));
    return Segment::Open(spec, Duplicate(meta), std::move(rows_fds), boot_id, available);
  }

  Segment::Spec spec = {.layout = {.layers = 3, .kv_heads = 2, .head_dim = 16, .blocks = 5},
                        .fingerprint = 0xabc};
  UniqueFd meta;
  std::vector<UniqueFd> rows;
};

TEST(SegmentLayout, PartsFollowEachOtherFromPageBoundaries) {
  const RowLayout layout = {.layers = 3, .kv_heads = 2, .head_dim = 16, .blocks = 5};
  EXPECT_EQ(MetaBytes(2, 5), 2 * kPage);
  EXPECT_EQ(MetaBytes(1, 65), 3 * kPage);
  EXPECT_EQ(RowsBytes(layout), layout.pool_bytes() + kPage);
  EXPECT_EQ(layout.pool_bytes() % kPage, 0u);
  EXPECT_EQ(offsetof(SegmentHeader, store_boot_id), 56u);
  EXPECT_EQ(offsetof(BlockHeader, grant_blocks), 36u);
  EXPECT_EQ(offsetof(RowStamp, first_position), 28u);
}

TEST(SegmentLayout, FactsOutsideTheLimitsAreNotValid) {
  const std::vector<std::function<void(SegmentHeader&)>> corruptions = {
      [](SegmentHeader& header) { header.magic = 1; },
      [](SegmentHeader& header) { ++header.version; },
      [](SegmentHeader& header) { header.pools = 0; },
      [](SegmentHeader& header) { header.pools = kMaxPools + 1; },
      [](SegmentHeader& header) { header.segment_id = 0; },
      [](SegmentHeader& header) { header.layers = kMaxLayers + 1; },
      [](SegmentHeader& header) { header.kv_heads = ~0u; },
      [](SegmentHeader& header) { header.head_dim = 0; },
      [](SegmentHeader& header) { header.dtype = 3; },
      [](SegmentHeader& header) { header.blocks = kMaxBlocks + 1; },
  };
  for (size_t i = 0; i <= corruptions.size(); ++i) {
    SegmentHeader header = {};
    const SegmentFacts facts = {
        .segment_id = 1,
        .fingerprint = 2,
        .pools = 3,
        .layout = {.layers = 4, .kv_heads = 5, .head_dim = 6, .dtype = DType::kBF16, .blocks = 7}};
    WriteFacts(facts, &header);
    if (i < corruptions.size()) corruptions[i](header);
    const SegmentFacts read = ReadFacts(header);
    EXPECT_EQ(read.valid, i == corruptions.size()) << i;
    if (read.valid) {
      EXPECT_EQ(read.layout, facts.layout);
    }
  }
}

TEST(Segment, FirstStartSizesPopulatesAndSeals) {
  Parent parent;
  Segment segment = *parent.Open(42);
  EXPECT_FALSE(segment.adopted());
  EXPECT_EQ(segment.facts().pools, 2u);
  EXPECT_EQ(segment.facts().layout, parent.spec.layout);
  EXPECT_EQ(HeaderOf(reinterpret_cast<std::byte*>(segment.blocks()) - kPage)->store_boot_id, 42u);
  const size_t rows_bytes = RowsBytes(parent.spec.layout);
  EXPECT_EQ(segment.bytes(), MetaBytes(2, 5) + 2 * rows_bytes);
  for (const UniqueFd& fd : parent.rows) {
    EXPECT_EQ(*FileBytes(fd.get()), rows_bytes);
    EXPECT_GE(*AllocatedBytes(fd.get()), rows_bytes);
    EXPECT_TRUE(*IsSizeSealed(fd.get()));
    EXPECT_EQ(ftruncate(fd.get(), 0), -1);
  }
  EXPECT_TRUE(*IsSizeSealed(parent.meta.get()));
  EXPECT_EQ(ftruncate(parent.meta.get(), 0), -1);
}

TEST(Segment, WorkersDescriptorOfMetaIsReadOnly) {
  Parent parent;
  Segment segment = *parent.Open(1);
  EXPECT_EQ(
      mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, segment.meta_read_only_fd(), 0),
      MAP_FAILED);
  EXPECT_EQ(pwrite(segment.meta_read_only_fd(), "x", 1, 0), -1);
}

TEST(Segment, ASuccessorFindsWhatWasThere) {
  Parent parent;
  uint64_t segment_id = 0;
  {
    Segment first = *parent.Open(1);
    segment_id = first.facts().segment_id;
    first.blocks()[9].owner = 77;
  }
  // A segment that is there needs no more memory.
  Segment second = *parent.Open(2, 0);
  EXPECT_TRUE(second.adopted());
  EXPECT_EQ(second.facts().segment_id, segment_id);
  EXPECT_EQ(second.blocks()[9].owner, 77u);
}

TEST(Segment, AnUnfinishedStartIsMadeAnew) {
  Parent parent;
  // One pool complete, the other sized only, meta with an old header but no seal.
  const size_t rows_bytes = RowsBytes(parent.spec.layout);
  ASSERT_TRUE(SizeAndPopulate(parent.rows[0].get(), rows_bytes).ok());
  ASSERT_TRUE(SealSize(parent.rows[0].get()).ok());
  ASSERT_EQ(ftruncate(parent.rows[1].get(), static_cast<off_t>(rows_bytes)), 0);
  ASSERT_TRUE(SizeAndPopulate(parent.meta.get(), MetaBytes(2, 5)).ok());
  ASSERT_EQ(pwrite(parent.meta.get(), "garbage", 7, kPage), 7);
  Segment segment = *parent.Open(1);
  EXPECT_FALSE(segment.adopted());
  EXPECT_EQ(segment.blocks()[0].tag, 0u);
  EXPECT_TRUE((*parent.Open(2)).adopted());
}

TEST(Segment, AMismatchNamesTheFieldAndBothValues) {
  Parent parent;
  ASSERT_TRUE(parent.Open(1).ok());
  const Segment::Spec good = parent.spec;
  const auto message = [&](const std::function<void(Segment::Spec&)>& change) {
    parent.spec = good;
    change(parent.spec);
    const absl::Status status = parent.Open(2).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    return std::string(status.message());
  };
  EXPECT_EQ(message([](auto& spec) { spec.layout.layers = 4; }),
            "the segment has layers 3, expected 4");
  EXPECT_EQ(message([](auto& spec) { spec.layout.blocks = 6; }),
            "the segment has blocks 5, expected 6");
  EXPECT_EQ(message([](auto& spec) { spec.layout.dtype = DType::kBF16; }),
            "the segment has row dtype float32, expected bfloat16");
  EXPECT_EQ(message([](auto& spec) { spec.fingerprint = 0xabd; }),
            "the segment has fingerprint 0000000000000abc, expected 0000000000000abd");
  parent.rows.pop_back();
  EXPECT_EQ(message([](auto&) {}), "the segment has pools 2, expected 1");
}

TEST(Segment, ForeignFilesAreRefused) {
  {
    Parent parent;  // sealed, but no segment
    ASSERT_TRUE(SizeAndPopulate(parent.meta.get(), MetaBytes(2, 5)).ok());
    ASSERT_TRUE(SealSize(parent.meta.get()).ok());
    EXPECT_EQ(parent.Open(1).status().code(), absl::StatusCode::kFailedPrecondition);
  }
  {
    Parent parent;  // the pools are swapped for others of another size
    ASSERT_TRUE(parent.Open(1).ok());
    parent.rows[1] = *CreateMemfd("rows");
    EXPECT_EQ(parent.Open(2).status().message(), "pool 1 is not sealed");
    ASSERT_TRUE(SizeAndPopulate(parent.rows[1].get(), kPage).ok());
    ASSERT_TRUE(SealSize(parent.rows[1].get()).ok());
    EXPECT_EQ(parent.Open(2).status().code(), absl::StatusCode::kFailedPrecondition);
  }
  {
    Parent parent;  // one file as two pools
    parent.rows[1] = Duplicate(parent.rows[0]);
    EXPECT_EQ(parent.Open(1).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(Segment, TooLittleMemoryIsRefusedBeforeItIsTaken) {
  Parent parent;
  const size_t need = MetaBytes(2, 5) + 2 * RowsBytes(parent.spec.layout);
  const absl::Status status = parent.Open(1, need - 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "segment needs " + std::to_string(need) + " bytes, " +
                                  std::to_string(need - 1) + " are available");
  EXPECT_EQ(*AllocatedBytes(parent.rows[0].get()), 0u);
  EXPECT_TRUE(parent.Open(1, need).ok());
}

}  // namespace
}  // namespace sparsekv::kv_store
