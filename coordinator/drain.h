#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>

#include "coordinator/engine.h"

namespace sparsekv {

// The end of the process by SIGTERM or SIGINT: new requests are refused, running ones may finish
// until the limit, the rest fails. A second signal ends the wait. Strand only; destroyed after the
// executor's context has stopped.
class Drain {
 public:
  // `on_drained` is called once; the engine has no client any more then.
  Drain(boost::asio::any_io_executor strand, Engine* engine, std::chrono::milliseconds limit,
        std::function<void()> on_drained);

 private:
  void WaitForSignal();
  void OnSignal(int number);
  void End(const absl::Status& why);

  Engine* const engine_;
  const std::chrono::milliseconds limit_;
  std::function<void()> on_drained_;  // null once called
  boost::asio::signal_set signals_;
  boost::asio::steady_timer timer_;
  bool draining_ = false;
};

}  // namespace sparsekv
