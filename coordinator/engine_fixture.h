#pragma once

#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/engine.h"
#include "coordinator/fake_store_link.h"
#include "coordinator/fake_worker_link.h"

namespace sparsekv {

// For tests: one token per byte.
class ByteCodec final : public TextCodec {
 public:
  absl::StatusOr<std::vector<uint32_t>> Encode(std::string_view text, bool) const override {
    if (text == "\n") return std::vector<uint32_t>();  // a text without tokens
    return std::vector<uint32_t>(text.begin(), text.end());
  }
  std::unique_ptr<TextStream> NewCompletion() const override { return std::make_unique<Bytes>(); }

 private:
  struct Bytes final : TextStream {
    std::string Push(uint32_t id) override {
      return id < 128 ? std::string(1, static_cast<char>(id)) : "";
    }
    std::string Finish() override { return ""; }
  };
};

// For tests: keeps what the client would have got.
class RecordingStream final : public ResponseStream {
 public:
  void Write(v1::GenerateResponse delta) override {
    EXPECT_EQ(finishes, 0);
    MergeResponse(std::move(delta), &all);
  }
  void Finish(const absl::Status& with) override {
    ++finishes;
    status = with;
  }
  bool done() const { return finishes > 0; }

  v1::GenerateResponse all;
  int finishes = 0;
  absl::Status status;
};

inline constexpr uint32_t kTestEos = 200;

inline v1::WorkerHello TestHello(uint32_t pool) {
  v1::WorkerHello hello;
  hello.set_pool(pool);
  hello.set_max_batch(4);
  hello.set_label_pages(64);
  hello.add_eos_token_ids(kTestEos);
  auto* model = hello.mutable_model();
  model->set_vocab_size(256);
  model->set_context(4096);
  model->set_layers(3);
  model->set_fingerprint("00000000000000aa");
  model->set_double_sparsity(true);
  return hello;
}

// An engine between fakes, on one thread that the test turns by hand.
class EngineFixture {
 public:
  explicit EngineFixture(uint32_t worker_count = 1, uint32_t blocks_per_pool = 16,
                         std::chrono::milliseconds lease = std::chrono::seconds(30),
                         PlacementPolicy placement = PlacementPolicy::kAuto,
                         PrefetchOptions prefetch = {})
      : store(std::make_shared<FakeStoreLink>(worker_count, blocks_per_pool)),
        metrics(worker_count),
        blocks(blocks_per_pool) {
    std::vector<std::shared_ptr<WorkerLink>> links;
    for (uint32_t i = 0; i < worker_count; ++i) {
      workers.push_back(std::make_shared<FakeWorkerLink>(i));
      workers.back()->hello = TestHello(i);
      links.push_back(workers.back());
    }
    store->on_release = [this](uint32_t pool, uint64_t owner) {
      EXPECT_FALSE(workers[pool]->HasOwner(owner)) << "blocks freed under a sequence";
    };
    engine = std::make_unique<Engine>(
        Engine::Options{.strand = io.get_executor(),
                        .pool = io.get_executor(),
                        .codec = &codec,
                        .metrics = &metrics,
                        .store = store,
                        .workers = links,
                        .placement = placement,
                        .prefetch = prefetch,
                        .on_ready = [this] { ++ready; },
                        .on_serving = [this](bool on) { serving = on; },
                        .lease = lease,
                        .kill_worker = [this](int64_t pid) { killed.push_back(pid); }});
    engine->Start();
  }

  // Everybody comes up.
  void Begin() {
    store->Up();
    for (auto& worker : workers) worker->Up(++boots);
    Settle();
  }
  void Poll() {
    io.restart();
    io.poll();
  }
  // Until nothing happens by itself; workers do not step.
  void Settle() {
    do {
      Poll();
    } while (store->Deliver());
  }
  void Step() {
    Settle();
    for (auto& worker : workers) {
      if (worker->up()) worker->Step();
    }
    Settle();
  }

  static v1::GenerateRequest Request(const std::string& prompt, uint32_t max_new_tokens) {
    v1::GenerateRequest request;
    request.set_text(prompt);
    request.set_max_new_tokens(max_new_tokens);
    return request;
  }
  struct Client {
    uint64_t key;
    std::shared_ptr<RecordingStream> stream;
    RecordingStream* operator->() const { return stream.get(); }
  };
  Client Submit(const v1::GenerateRequest& request) {
    auto stream = std::make_shared<RecordingStream>();
    return {engine->Submit(std::make_shared<v1::GenerateRequest>(request), stream), stream};
  }
  void Cancel(const Client& client) {
    engine->Cancel(client.key, absl::CancelledError("the client left"));
  }
  bool AllBlocksFree() const {
    for (uint32_t pool = 0; pool < workers.size(); ++pool) {
      if (store->FreeBlocks(pool) != blocks) return false;
    }
    return true;
  }

  boost::asio::io_context io;
  ByteCodec codec;
  std::shared_ptr<FakeStoreLink> store;
  std::vector<std::shared_ptr<FakeWorkerLink>> workers;
  Metrics metrics;
  const uint32_t blocks;  // of each pool
  std::unique_ptr<Engine> engine;
  uint64_t boots = 0;
  int ready = 0;
  bool serving = false;
  std::vector<int64_t> killed;  // pids of workers
};

}  // namespace sparsekv
