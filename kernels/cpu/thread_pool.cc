#include "kernels/cpu/thread_pool.h"

#include <hwy/cache_control.h>

#include "base/check.h"

namespace sparsekv::cpu {
namespace {

// About 20 to 50 microseconds of watching: longer than the gap between two operations of a step,
// shorter than what an idle server should burn.
constexpr int kSpins = 1000;

}  // namespace

ThreadPool::ThreadPool(unsigned threads) {
  CHECK_LE(1u, threads);
  for (unsigned thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread] { WorkerLoop(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::RunErased(uint32_t tasks, Invoke invoke, const void* context) {
  if (workers_.empty() || tasks <= 1) {
    for (uint32_t task = 0; task < tasks; ++task) invoke(context, task, 0);
    return;
  }
  CHECK_EQ(unclaimed_.load(), 0u);
  invoke_.store(invoke, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  unfinished_.store(tasks, std::memory_order_relaxed);
  unclaimed_.store(tasks, std::memory_order_release);
  epoch_.fetch_add(1);
  epoch_.notify_all();

  while (RunOneTask(0)) {
  }
  for (int spins = 0; unfinished_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpins) {
      hwy::Pause();
    } else {
      std::this_thread::yield();  // the thread we wait for may need this core
    }
  }
}

// A count above zero always belongs to the job whose fields are published, because the next job is
// published only after the last one's tasks have all been claimed and have returned.
bool ThreadPool::RunOneTask(unsigned thread) {
  uint32_t left = unclaimed_.load(std::memory_order_acquire);
  do {
    if (left == 0) return false;
  } while (!unclaimed_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel,
                                             std::memory_order_acquire));
  const Invoke invoke = invoke_.load(std::memory_order_relaxed);
  invoke(context_.load(std::memory_order_relaxed), left - 1, thread);
  unfinished_.fetch_sub(1, std::memory_order_release);
  return true;
}

// The epoch is read before stop_, which is set before the last epoch begins: who has seen that
// epoch sees stop_ too, and nobody waits for one that never comes.
void ThreadPool::WorkerLoop(unsigned thread) {
  while (true) {
    const uint32_t epoch = epoch_.load();
    if (stop_.load()) return;
    if (RunOneTask(thread)) continue;
    int spins = 0;
    while (spins < kSpins && epoch_.load(std::memory_order_relaxed) == epoch) {
      hwy::Pause();
      ++spins;
    }
    if (spins == kSpins) epoch_.wait(epoch);
  }
}

}  // namespace sparsekv::cpu
