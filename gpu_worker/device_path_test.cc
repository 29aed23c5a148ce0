// The worker on a device with memory of its own, on machines that have none
// (kernels/fake_device.h): what is copied there, what is shared with it and when, that nothing else
// is touched, that memory is what the plan said, and that no bit of a result changes.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <random>
#include <set>
#include <thread>

#include "gpu_worker/local_runner.h"
#include "gpu_worker/random_checkpoint.h"
#include "kernels/fake_device.h"

namespace sparsekv {
namespace {

constexpr uint32_t kLayers = 4, kPrompt = 500, kSteps = 6, kTokens = kPrompt + kSteps;
constexpr RowBudget kBudget{.rows = 90};
constexpr size_t kChunk = 64 << 10;

struct How {
  std::string name;
  RowMode rows;
  RowPlacement placement = RowPlacement::kOffload;
  uint32_t percent = 100;
  bool dense = false;
  bool mirror = false;
};

std::vector<How> AllWays() {
  std::vector<How> ways;
  for (bool dense : {false, true}) {
    ways.push_back({.name = "resident",
                    .rows = {.in_place = false, .predict = true},
                    .placement = RowPlacement::kResident,
                    .dense = dense});
    for (uint32_t hot : {0u, 100u, 300u}) {
      for (uint32_t percent : {0u, 60u, 150u}) {
        if (dense && percent > 0) continue;
        ways.push_back({.name = "hot rows " + std::to_string(hot) + ", predicting " +
                                std::to_string(percent) + " %",
                        .rows = {.in_place = false, .hot_rows = hot, .predict = percent > 0},
                        .percent = percent,
                        .dense = dense});
      }
    }
  }
  for (const bool dense : {false, true}) {
    for (const uint32_t hot : {0u, 100u}) {
      ways.push_back({.name = "mirrored, hot rows " + std::to_string(hot),
                      .rows = {.in_place = false, .hot_rows = hot, .predict = !dense},
                      .dense = dense,
                      .mirror = true});
    }
  }
  return ways;
}

class DevicePathTest : public ::testing::Test {
 protected:
  LocalRunner::Options Options(const How& how, uint32_t sequences) {
    return {.max_tokens = kTokens,
            .sequences = sequences,
            .chunk_tokens = 256,
            .threads = 2,
            .backend = BackendKind::kCuda,
            .mirror_rows = how.mirror,
            .make_backend =
                [this] {
                  auto device = std::make_unique<FakeDevice>(MakeCpuBackend(2), fake_);
                  device_ = device.get();
                  return device;
                },
            .share_chunk_bytes = kChunk,
            .rows = how.rows,
            .placement = how.placement,
            .selection = how.dense ? kTokens : kBudget.rows};
  }

  std::vector<uint32_t> Prompt(uint32_t sequence) const {
    std::mt19937 random(sequence + 1);
    std::vector<uint32_t> ids(kPrompt);
    for (uint32_t& id : ids) id = random() % files_.config.vocab_size;
    return ids;
  }

  // Prompts, then greedy steps of all sequences together: every step's tokens and logits.
  std::vector<std::vector<float>> Decode(LocalRunner& runner, uint32_t sequences,
                                         RowBudget budget) {
    std::vector<std::vector<float>> outcome;
    std::vector<uint32_t> next(sequences);
    const uint32_t vocab = files_.config.vocab_size;
    for (uint32_t s = 0; s < sequences; ++s) {
      const float* logits = runner.Prefill(s, Prompt(s));
      next[s] = static_cast<uint32_t>(std::max_element(logits, logits + vocab) - logits);
    }
    for (uint32_t step = 0; step < kSteps; ++step) {
      std::vector<LocalRunner::Step> steps;
      for (uint32_t s = 0; s < sequences; ++s) steps.push_back({s, {&next[s], 1}, budget});
      runner.model().set_measure(step % 3 == 0);
      runner.ForwardBatch(steps, /*draw=*/true);
      for (uint32_t s = 0; s < sequences; ++s) {
        const float* logits = runner.Logits(s);
        outcome.emplace_back(logits, logits + vocab);
        next[s] = static_cast<uint32_t>(std::max_element(logits, logits + vocab) - logits);
        EXPECT_EQ(runner.drawn()[s].id, next[s]);
      }
    }
    return outcome;
  }

  RandomCheckpoint checkpoint_{{.layers = kLayers,
                                .kv_heads = 2,
                                .group = 2,
                                .head_dim = 32,
                                .hidden = 64,
                                .intermediate = 96,
                                .context = kTokens,
                                .channels = 10,
                                .label_format = LabelFormat::kInt4,
                                .dtype = DType::kBF16},
                               5};
  const ModelFiles& files_ = checkpoint_.files();
  FakeDevice::Options fake_{.bytes = size_t{2} << 30, .stops_copies = true};
  FakeDevice* device_ = nullptr;
};

TEST_F(DevicePathTest, EveryWayGivesTheBitsOfTheCpu) {
  size_t stopped = 0, late = 0;
  for (uint32_t sequences : {1u, 3u}) {
    for (const How& how : AllWays()) {
      SCOPED_TRACE(how.name + (how.dense ? ", dense, batch of " : ", batch of ") +
                   std::to_string(sequences));
      const RowBudget budget = how.dense ? RowBudget{} : kBudget;
      auto plain = LocalRunner::Make(
          files_, {.max_tokens = kTokens, .sequences = sequences, .chunk_tokens = 256});
      ASSERT_TRUE(plain.ok()) << plain.status();
      auto runner = LocalRunner::Make(files_, Options(how, sequences));
      ASSERT_TRUE(runner.ok()) << runner.status();
      std::vector<LayerPolicy> policies(kLayers, {how.rows.predict, how.percent, false});
      policies[0].predict = false;
      (*runner)->device().attention->set_policies(policies);

      const size_t allocations = device_->allocations();
      ASSERT_EQ(Decode(**runner, sequences, budget), Decode(**plain, sequences, budget));
      // Nothing was taken after the start, and every step was noted as what it is. Logits that are
      // looked at are a step of their own.
      EXPECT_EQ(device_->allocations(), allocations);
      EXPECT_EQ(device_->decode_steps(), kSteps * (1 + sequences));
      EXPECT_GE(device_->prompt_steps(), sequences * ((kPrompt + 255) / 256));
      stopped += device_->stopped_copies();
      late += device_->late_copies();
      for (const LayerCounts& layer : (*runner)->device().attention->counts()) {
        const RowCounts& rows = layer.rows;
        EXPECT_EQ(rows.selected, rows.hits + rows.useful + rows.missed);
        EXPECT_LE(rows.useful, rows.prefetched);
      }
    }
  }
  EXPECT_GT(stopped, 10u);
  EXPECT_GT(late, 10u);
}

// What was there and what was missing, as where the device's memory is the host's. (Predictions
// differ: there they are as quick as the machine, here they are stopped by chance.)
TEST_F(DevicePathTest, CountsAreThoseOfTheCpu) {
  for (const How& how : AllWays()) {
    if (how.rows.predict && how.placement == RowPlacement::kOffload) continue;
    SCOPED_TRACE(how.name + (how.dense ? ", dense" : ""));
    const RowBudget budget = how.dense ? RowBudget{} : kBudget;
    LocalRunner::Options options = Options(how, 2);
    auto device = LocalRunner::Make(files_, options);
    ASSERT_TRUE(device.ok()) << device.status();
    options.backend = BackendKind::kCpu;
    options.make_backend = nullptr;
    auto cpu = LocalRunner::Make(files_, options);
    ASSERT_TRUE(cpu.ok()) << cpu.status();
    for (LocalRunner* runner : {device->get(), cpu->get()}) Decode(*runner, 2, budget);
    uint64_t missed = 0;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      const RowCounts& got = (*device)->device().attention->counts()[layer].rows;
      const RowCounts& expected = (*cpu)->device().attention->counts()[layer].rows;
      EXPECT_EQ(got.selected, expected.selected);
      EXPECT_EQ(got.hits, expected.hits);
      EXPECT_EQ(got.useful, expected.useful);
      EXPECT_EQ(got.missed, expected.missed);
      missed += got.missed;
    }
    for (uint32_t sequence = 0; sequence < 2; ++sequence) {
      EXPECT_EQ((*device)->counts(sequence).hits, (*cpu)->counts(sequence).hits);
      EXPECT_EQ((*device)->counts(sequence).missed, (*cpu)->counts(sequence).missed);
    }
    // Beside these the rows that the steps made come over the link, where a selection has them.
    const bool reads_made = how.placement == RowPlacement::kOffload && !how.dense;
    const uint64_t made = reads_made ? uint64_t{kLayers} * kSteps * 2 * files_.config.kv_heads : 0;
    EXPECT_EQ((*device)->device().attention->direct_bytes(),
              (missed + made) * files_.Layout(1).row_bytes());
  }
}

// Mirrored, nothing reads the segment: a device that is given other rows there does not notice.
TEST_F(DevicePathTest, MirroredRowsAreReadFromTheMirror) {
  for (const bool dense : {false, true}) {
    std::vector<std::vector<float>> outcomes;
    for (const bool spoiled : {false, true}) {
      const How how = {.name = "",
                       .rows = {.in_place = false, .hot_rows = 100, .predict = true},
                       .dense = dense,
                       .mirror = true};
      auto runner = LocalRunner::Make(files_, Options(how, 1));
      ASSERT_TRUE(runner.ok()) << runner.status();
      std::vector<LayerPolicy> policies(kLayers, {.predict = true});
      policies[0].predict = false;
      (*runner)->device().attention->set_policies(policies);
      (*runner)->Prefill(0, Prompt(0));
      auto& segment = (*runner)->segment();
      if (spoiled) std::memset(segment.rows(), 0xFF, segment.layout().pool_bytes());
      for (uint32_t id = 1; id <= kSteps; ++id) {
        (*runner)->Forward({&id, 1}, dense ? RowBudget{} : kBudget);
        const float* logits = (*runner)->Logits(0);
        outcomes.emplace_back(logits, logits + files_.config.vocab_size);
      }
    }
    const auto half = outcomes.begin() + kSteps;
    EXPECT_TRUE(std::equal(outcomes.begin(), half, half)) << (dense ? "dense" : "selected");
  }
}

TEST_F(DevicePathTest, WhatIsForgottenIsInNoSlot) {
  for (uint32_t hot : {0u, 100u, 300u}) {
    const How how = {.name = "", .rows = {.in_place = false, .hot_rows = hot}};
    auto device = LocalRunner::Make(files_, Options(how, 1));
    ASSERT_TRUE(device.ok()) << device.status();
    auto plain = LocalRunner::Make(files_, {.max_tokens = kTokens, .chunk_tokens = 256});
    ASSERT_TRUE(plain.ok()) << plain.status();
    std::vector<float> seen[2];
    for (size_t which : {0, 1}) {
      LocalRunner& runner = which == 0 ? **device : **plain;
      runner.Prefill(0, Prompt(0));
      for (uint32_t first : {3u, 40u}) {
        for (uint32_t id = first; id < first + kSteps; ++id) {
          runner.Forward({&id, 1}, kBudget);
          const float* logits = runner.Logits(0);
          seen[which].insert(seen[which].end(), logits, logits + files_.config.vocab_size);
        }
        runner.Rewind(kPrompt);
      }
    }
    EXPECT_EQ(seen[0], seen[1]) << hot << " hot rows";
  }
}

TEST_F(DevicePathTest, MemoryIsWhatThePlanSaid) {
  for (const How& how : AllWays()) {
    SCOPED_TRACE(how.name);
    auto runner = LocalRunner::Make(files_, Options(how, 2));
    ASSERT_TRUE(runner.ok()) << runner.status();
    const Device& device = (*runner)->device();
    EXPECT_EQ(device.plan.bytes_by_kind, device.arena->bytes_by_kind());
    EXPECT_EQ(device.plan.total_bytes(), device.arena->used_bytes());
    for (const char* kind : {"weights", "tables", "scratch", "activations"}) {
      EXPECT_GT(device.plan.bytes_by_kind.at(kind), 0u) << kind;
    }
    // What the device gave, and what it was told to keep for itself.
    EXPECT_EQ(fake_.bytes - device_->free_bytes() + device.plan.bytes_by_kind.at("scratch"),
              device.arena->used_bytes());
    EXPECT_EQ(device_->reserved_bytes(), device.plan.scratch_bytes);
  }
}

TEST_F(DevicePathTest, WhatDoesNotFitIsSaidAtTheStart) {
  fake_.bytes = size_t{100} << 20;
  auto runner = LocalRunner::Make(files_, Options(AllWays()[0], 2));
  EXPECT_EQ(runner.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(runner.status().message().find(std::to_string((size_t{100} << 20) / 10 * 9)),
            std::string::npos)
      << runner.status();
}

TEST_F(DevicePathTest, HostMemoryThatCannotBeSharedIsOneLine) {
  fake_.most_shared_bytes = 3 * kChunk;
  auto runner = LocalRunner::Make(files_, Options(AllWays()[0], 2));
  EXPECT_EQ(runner.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(runner.status().message(),
            "segment: the device cannot have 65536 bytes of host memory beside 196608 that it has: "
            "the fake shares no more");
}

class SharedRowsTest : public ::testing::Test {
 protected:
  static constexpr RowLayout kLayout{
      .layers = 3, .kv_heads = 2, .head_dim = 32, .dtype = DType::kBF16, .blocks = 37};

  SharedRows::Options Options(size_t chunk_bytes = kChunk) {
    return {.backend = &device_,
            .pool = pool_.data(),
            .layout = kLayout,
            .chunk_bytes = chunk_bytes,
            .lock_file = lock_file_};
  }
  bool Covered(uint32_t layer, uint32_t block) {
    const std::byte* begin =
        pool_.data() + layer * kLayout.layer_stride() + block * kLayout.block_stride();
    size_t covered = 0;
    for (const auto& [at, bytes] : device_.shared()) {
      const std::byte* from = std::max(at, begin);
      const std::byte* to = std::min(at + bytes, begin + kLayout.block_stride());
      if (from < to) covered += static_cast<size_t>(to - from);
    }
    return covered == kLayout.block_stride();
  }

  std::vector<std::byte> pool_ = std::vector<std::byte>(kLayout.pool_bytes());
  FakeDevice device_{MakeReferenceBackend(), {}};
  std::string lock_file_;
};

TEST_F(SharedRowsTest, ChunksAreRegisteredOnFirstUseAndReleased) {
  std::mt19937 random(1);
  for (size_t chunk_bytes : {size_t{4096}, kChunk, kChunk * 3, size_t{1} << 30}) {
    SharedRows rows(Options(chunk_bytes));
    EXPECT_TRUE(device_.shared().empty());
    std::set<uint32_t> used;
    for (int round = 0; round < 12; ++round) {
      std::vector<uint32_t> blocks;
      for (int i = 0; i < 3; ++i) blocks.push_back(random() % kLayout.blocks);
      used.insert(blocks.begin(), blocks.end());
      ASSERT_TRUE(rows.Use(blocks).ok());
      for (uint32_t layer = 0; layer < kLayout.layers; ++layer) {
        for (uint32_t block : used) ASSERT_TRUE(Covered(layer, block));
      }
    }
    size_t needed = 0;  // chunks that hold a byte of a used block
    for (size_t chunk = 0; chunk < rows.chunks(); ++chunk) {
      const size_t begin = chunk * chunk_bytes, end = begin + chunk_bytes;
      bool any = false;
      for (uint32_t layer = 0; layer < kLayout.layers; ++layer) {
        for (uint32_t block : used) {
          const size_t at = layer * kLayout.layer_stride() + block * kLayout.block_stride();
          any |= at < end && at + kLayout.block_stride() > begin;
        }
      }
      needed += any;
    }
    EXPECT_EQ(device_.shared().size(), needed);
  }
  EXPECT_TRUE(device_.shared().empty());
}

TEST_F(SharedRowsTest, WhatFailsKeepsWhatThereWas) {
  FakeDevice small(MakeReferenceBackend(), {.most_shared_bytes = 4 * kLayout.block_stride()});
  SharedRows::Options options = Options();
  options.backend = &small;
  options.layout.layers = 1;
  options.chunk_bytes = kLayout.block_stride() / 4096 * 4096;
  SharedRows rows(options);
  const std::vector<uint32_t> first = {0}, many = {5, 9, 14, 20, 25, 31};
  ASSERT_TRUE(rows.Use(first).ok());
  EXPECT_EQ(rows.Use(many).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(rows.Use(first).ok());
  EXPECT_EQ(rows.registered_bytes(), 4 * kLayout.block_stride());
}

TEST_F(SharedRowsTest, WorkersRegisterOneAfterTheOther) {
  const std::string path =
      std::filesystem::temp_directory_path() / ("sparsekv-lock-" + std::to_string(getpid()));
  lock_file_ = path;
  const int held = open(path.c_str(), O_CREAT | O_RDWR, 0600);
  ASSERT_EQ(flock(held, LOCK_EX), 0);
  std::atomic<bool> done = false;
  SharedRows rows(Options());
  std::thread other([&] {
    const uint32_t block = 3;
    EXPECT_TRUE(rows.Use({&block, 1}).ok());
    done = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_FALSE(done);
  close(held);
  other.join();
  EXPECT_TRUE(done);
  unlink(path.c_str());
}

}  // namespace
}  // namespace sparsekv
