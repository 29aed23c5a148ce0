#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>

namespace sparsekv::cpu {
namespace {

TEST(ThreadPoolTest, EveryTaskRunsOnce) {
  for (unsigned threads : {1u, 2u, 5u}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (uint32_t tasks : {0u, 1u, 2u, 7u, 1000u}) {
      std::vector<std::atomic<int>> runs(tasks);
      pool.Run(tasks, [&](uint32_t task, unsigned thread) {
        EXPECT_LT(thread, threads);
        ++runs[task];
      });
      for (const std::atomic<int>& count : runs) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPoolTest, RunsFollowEachOtherClosely) {
  ThreadPool pool(4);
  std::vector<uint32_t> seen(16);
  for (uint32_t run = 1; run <= 20000; ++run) {
    pool.Run(2 + run % 15, [&](uint32_t task, unsigned) { seen[task] = run; });
    for (uint32_t task = 0; task < 2 + run % 15; ++task) ASSERT_EQ(seen[task], run);
  }
}

TEST(ThreadPoolTest, SleepersWake) {
  ThreadPool pool(3);
  for (int run = 0; run < 20; ++run) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // long enough for all to sleep
    std::atomic<int> ran{0};
    pool.Run(50, [&](uint32_t, unsigned) {
      std::this_thread::sleep_for(std::chrono::microseconds(20));
      ++ran;
    });
    EXPECT_EQ(ran.load(), 50);
  }
}

TEST(ThreadPoolTest, ThreadsShareTheWork) {
  ThreadPool pool(2);
  std::vector<std::atomic<int>> runs(2);
  pool.Run(100, [&](uint32_t, unsigned thread) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    ++runs[thread];
  });
  EXPECT_GT(runs[0].load(), 0);
  EXPECT_GT(runs[1].load(), 0);
}

// Between their first look around and their sleep, too.
TEST(ThreadPoolTest, EndsWhateverItsThreadsDo) {
  for (int i = 0; i < 3000; ++i) {
    ThreadPool pool(1 + i % 3);
    if (i % 2 == 0) pool.Run(3, [](uint32_t, unsigned) {});
  }
}

}  // namespace
}  // namespace sparsekv::cpu
