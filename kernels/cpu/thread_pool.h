#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace sparsekv::cpu {

// Runs the tasks of one operation on a fixed set of threads, the caller's among them. Built for
// steps of microseconds that follow each other closely: idle threads watch for work for a short
// while and then sleep in the kernel. Which thread takes which task is decided while running, so a
// task's result must not depend on it.
//
// Run may be called by one thread at a time and not from inside a task.
class ThreadPool {
 public:
  explicit ThreadPool(unsigned threads);  // the caller's included; at least 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  unsigned threads() const { return static_cast<unsigned>(workers_.size()) + 1; }

  // Calls function(task, thread) for every task in [0, tasks), thread in [0, threads()), and
  // returns when all have returned. A single task runs on the caller's thread.
  template <typename Function>
  void Run(uint32_t tasks, const Function& function) {
    RunErased(
        tasks,
        [](const void* context, uint32_t task, unsigned thread) {
          (*static_cast<const Function*>(context))(task, thread);
        },
        &function);
  }

 private:
  using Invoke = void (*)(const void* context, uint32_t task, unsigned thread);

  void RunErased(uint32_t tasks, Invoke invoke, const void* context);
  bool RunOneTask(unsigned thread);
  void WorkerLoop(unsigned thread);

  // The job. Written by Run while `unclaimed_` is 0, read by a thread only after it claimed a task.
  std::atomic<Invoke> invoke_{nullptr};
  std::atomic<const void*> context_{nullptr};

  alignas(64) std::atomic<uint32_t> unclaimed_{0};   // tasks that nobody has taken yet
  alignas(64) std::atomic<uint32_t> unfinished_{0};  // tasks that have not returned yet
  alignas(64) std::atomic<uint32_t> epoch_{0};       // counts Run calls; sleepers wait on it
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace sparsekv::cpu
