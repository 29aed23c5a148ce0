#include "cli/bench/bench_fetch.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "cli/bench/ceilings.h"
#include "cli/bench/random_model.h"
#include "cli/bench/report.h"
#include "gpu_worker/prefetcher.h"
#include "kv_store/client.h"

namespace sparsekv {

namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kHeads = 8;
constexpr size_t kPoolBytes = size_t{256} << 20;  // far more than a cache
constexpr uint64_t kOwner = 1;

// A pool of rows of one size, all of one sequence, and as many slots as the largest request.
class FetchBench {
 public:
  FetchBench(size_t row_bytes, uint32_t slots, const FetchBenchOptions& options);

  // Seconds to bring `rows` random rows of every KV head.
  double Run(bool gather, uint32_t rows);
  double StreamRate();
  bool gathered() const { return gathered_; }

 private:
  const FetchBenchOptions& options_;
  RowLayout layout_;
  std::unique_ptr<kv_store::SegmentClient> segment_;
  kv_store::BlockGrant grant_;
  std::vector<std::byte> device_;
  std::vector<uint32_t> device_blocks_;
  RowLayout device_layout_;
  std::unique_ptr<SimulatedLink> link_;
  std::mt19937 random_{1};
  cpu::ThreadPool pool_{1};
  bool gathered_ = true;
};

FetchBench::FetchBench(size_t row_bytes, uint32_t slots, const FetchBenchOptions& options)
    : options_(options) {
  layout_ = {.layers = 1,
             .kv_heads = kHeads,
             .head_dim = static_cast<uint32_t>(row_bytes / 4),
             .dtype = DType::kBF16,
             .blocks = static_cast<uint32_t>(kPoolBytes / (row_bytes * kHeads * kBlockTokens))};
  segment_ = kv_store::SegmentClient::MakeLocal(layout_, 1);
  segment_->StartLocalGather(options.gather_threads);
  auto grant = segment_->Grant(layout_.blocks * kBlockTokens, kOwner);
  CHECK(grant.ok());
  grant_ = *grant;
  FillBf16(segment_->rows(), layout_.pool_bytes() / 2, 1.0, 7);
  for (uint32_t i = 0; i < grant_.blocks.size(); ++i) {
    segment_->StampRows(0, grant_.blocks[i], kOwner, grant_.generations[i], i * kBlockTokens);
    segment_->PublishRows(0, grant_.blocks[i], kBlockTokens);
  }
  device_layout_ = layout_;
  device_layout_.blocks = (slots + kBlockTokens - 1) / kBlockTokens;
  device_.resize(device_layout_.pool_bytes());
  for (uint32_t i = 0; i < device_layout_.blocks; ++i) device_blocks_.push_back(i);
  if (options.link.bytes_per_s > 0) {
    link_ = std::make_unique<SimulatedLink>(
        options.link.bytes_per_s, std::chrono::nanoseconds(int64_t(options.link.latency_s * 1e9)));
  }
}

double FetchBench::Run(bool gather, uint32_t rows) {
  Prefetcher prefetcher({.link = link_.get(), .gather = gather ? segment_->gather() : nullptr});
  const RowTable from{segment_->rows(), grant_.blocks.data(), &layout_};
  const RowTable to{device_.data(), device_blocks_.data(), &device_layout_};
  const uint32_t tokens = layout_.blocks * kBlockTokens;
  std::vector<std::vector<RowMove>> moves(kHeads);
  std::vector<PrefetchPiece> pieces;
  for (uint32_t head = 0; head < kHeads; ++head) {
    for (uint32_t i = 0; i < rows; ++i)
      moves[head].push_back({static_cast<uint32_t>(random_() % tokens), i});
    std::ranges::sort(moves[head], {}, &RowMove::token);
    pieces.push_back({.from = from,
                      .to = to,
                      .kv_head = head,
                      .moves = moves[head].data(),
                      .count = rows,
                      .owner = kOwner,
                      .generations = grant_.generations.data()});
  }
  const auto begin = Clock::now();
  prefetcher.Finish(prefetcher.Start(0, pieces));
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  gathered_ = gathered_ && (!gather || prefetcher.direct_bytes() == 0);
  return seconds;
}

double FetchBench::StreamRate() {
  return static_cast<double>(layout_.pool_bytes()) /
         StreamRead(pool_, {segment_->rows(), layout_.pool_bytes()});
}

}  // namespace

absl::Status BenchFetch(const FetchBenchOptions& options) {
  BenchReport report;
  constexpr uint32_t kCounts[] = {16, 128, 512, 2048};
  for (size_t row_bytes : {128, 256, 512, 1024}) {
    FetchBench bench(row_bytes, kCounts[3], options);
    for (uint32_t count : kCounts) {
      std::vector<double> seconds[2], shares[2];
      const double bytes = static_cast<double>(row_bytes) * count * kHeads;
      for (uint32_t round = 0; round < options.rounds; ++round) {
        const double stream = bench.StreamRate();
        for (int gather : {0, 1}) {
          seconds[gather].push_back(bench.Run(gather == 1, count));
          shares[gather].push_back(bytes / stream / seconds[gather].back());
        }
      }
      for (int gather : {0, 1}) {
        BenchCase item;
        item.name = absl::StrCat("fetch/", gather ? "gather" : "direct");
        item.params = {{"row_bytes", row_bytes}, {"rows", count * kHeads}};
        if (gather && !bench.gathered()) item.params["some"] = "went direct";
        item.bytes = bytes;
        item.seconds_median = Median(seconds[gather]);
        item.ceiling_share = Median(shares[gather]);
        report.Add(std::move(item));
      }
    }
  }
  report.Print(options.json);
  return absl::OkStatus();
}

}  // namespace sparsekv
