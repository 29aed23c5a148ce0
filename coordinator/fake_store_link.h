#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/limits.h"
#include "coordinator/store_link.h"

namespace sparsekv {

// For tests: a store in memory. Calls wait until the test delivers them. Strand only.
class FakeStoreLink final : public StoreLink {
 public:
  FakeStoreLink(uint32_t pools, uint32_t blocks_per_pool)
      : blocks_per_pool_(blocks_per_pool), pools_(pools) {}

  // Called before blocks of an owner go back: nobody may be using them.
  std::function<void(uint32_t pool, uint64_t owner)> on_release = [](uint32_t, uint64_t) {};

  void Start(Listener* listener) override { listener_ = listener; }
  void Stop() override { listener_ = nullptr; }

  void Allocate(const v1::AllocateRequest& request, Callback<v1::AllocateResponse> done) override {
    ++allocations;
    Add([this, request] { return DoAllocate(request); }, std::move(done));
  }
  void Release(const v1::ReleaseRequest& request, Callback<v1::ReleaseResponse> done) override {
    Add(
        [this, request]() -> absl::StatusOr<v1::ReleaseResponse> {
          v1::ReleaseResponse response;
          response.set_released_blocks(Free(request.pool(), request.owner()));
          response.set_free_blocks(FreeBlocks(request.pool()));
          return response;
        },
        std::move(done));
  }
  void Reconcile(const v1::ReconcileRequest& request,
                 Callback<v1::ReconcileResponse> done) override {
    Add([this, request] { return DoReconcile(request); }, std::move(done));
  }

  void Up() {
    up_ = true;
    v1::DescribeResponse store;
    store.set_boot_id(++boot_id_);
    store.set_pools(static_cast<uint32_t>(pools_.size()));
    store.set_blocks_per_pool(blocks_per_pool_);
    store.set_bytes_per_block(4096);
    for (uint32_t pool = 0; pool < pools_.size(); ++pool) {
      store.add_free_blocks(FreeBlocks(pool));
    }
    if (listener_) listener_->OnStoreUp(store);
  }
  // The calls under way fail; with `done` the store has done what they asked first.
  void Down(bool done) {
    up_ = false;
    if (listener_) listener_->OnStoreDown(absl::UnavailableError("the fake store died"));
    for (Pending& call : std::exchange(calls_, {})) call(/*execute=*/done, /*answer=*/false);
  }
  // Answers every call that waits. True when there was one.
  bool Deliver() {
    const bool any = !calls_.empty();
    for (Pending& call : std::exchange(calls_, {})) call(/*execute=*/up_, /*answer=*/up_);
    return any;
  }

  bool up() const { return up_; }
  size_t waiting() const { return calls_.size(); }
  uint32_t FreeBlocks(uint32_t pool) const {
    uint32_t used = 0;
    for (const auto& [owner, blocks] : pools_[pool]) used += blocks;
    return blocks_per_pool_ - used;
  }
  // As if somebody else held blocks.
  void Occupy(uint32_t pool, uint64_t owner, uint32_t blocks) { pools_[pool][owner] = blocks; }

  int allocations = 0;
  int reconciliations = 0;

 private:
  using Pending = std::function<void(bool execute, bool answer)>;

  template <typename Response>
  void Add(std::function<absl::StatusOr<Response>()> execute, Callback<Response> done) {
    calls_.push_back([this, execute, done](bool do_it, bool answer) {
      absl::StatusOr<Response> response = absl::UnavailableError("the store is not there");
      if (do_it) {
        absl::StatusOr<Response> result = execute();
        if (answer) response = std::move(result);
      }
      if (listener_) done(std::move(response));
    });
  }
  template <typename Execute, typename Response>
  void Add(Execute execute, Callback<Response> done) {
    Add<Response>(std::function<absl::StatusOr<Response>()>(std::move(execute)), std::move(done));
  }

  absl::StatusOr<v1::AllocateResponse> DoAllocate(const v1::AllocateRequest& request) {
    const uint32_t blocks = (request.tokens() + kBlockTokens - 1) / kBlockTokens;
    CHECK_NE(request.owner(), uint64_t{0});
    CHECK(!pools_[request.pool()].contains(request.owner()));
    if (blocks > blocks_per_pool_) return absl::InvalidArgumentError("could never fit");
    if (blocks > FreeBlocks(request.pool())) return absl::ResourceExhaustedError("not now");
    pools_[request.pool()][request.owner()] = blocks;
    v1::AllocateResponse response;
    for (uint32_t i = 0; i < blocks; ++i) {
      response.add_blocks(i);
      response.add_generations(1);
    }
    response.set_free_blocks(FreeBlocks(request.pool()));
    return response;
  }

  absl::StatusOr<v1::ReconcileResponse> DoReconcile(const v1::ReconcileRequest& request) {
    ++reconciliations;
    const std::set<uint64_t> live(request.live_owners().begin(), request.live_owners().end());
    std::vector<uint64_t> unknown;
    for (const auto& [owner, blocks] : pools_[request.pool()]) {
      if (!live.contains(owner)) unknown.push_back(owner);
    }
    v1::ReconcileResponse response;
    uint32_t released = 0;
    for (uint64_t owner : unknown) released += Free(request.pool(), owner);
    response.set_released_blocks(released);
    response.set_free_blocks(FreeBlocks(request.pool()));
    return response;
  }

  uint32_t Free(uint32_t pool, uint64_t owner) {
    on_release(pool, owner);
    const auto found = pools_[pool].find(owner);
    if (found == pools_[pool].end()) return 0;
    const uint32_t blocks = found->second;
    pools_[pool].erase(found);
    return blocks;
  }

  const uint32_t blocks_per_pool_;
  Listener* listener_ = nullptr;
  bool up_ = false;
  uint64_t boot_id_ = 0;
  std::vector<std::map<uint64_t, uint32_t>> pools_;  // blocks by owner
  std::deque<Pending> calls_;
};

}  // namespace sparsekv
