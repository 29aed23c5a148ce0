#include "coordinator/drain.h"

#include <csignal>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace sparsekv {

Drain::Drain(boost::asio::any_io_executor strand, Engine* engine, std::chrono::milliseconds limit,
             std::function<void()> on_drained)
    : engine_(engine),
      limit_(limit),
      on_drained_(std::move(on_drained)),
      signals_(strand, SIGTERM, SIGINT),
      timer_(strand) {
  WaitForSignal();
}

void Drain::WaitForSignal() {
  signals_.async_wait([this](boost::system::error_code error, int number) {
    if (!error) OnSignal(number);
  });
}

void Drain::OnSignal(int number) {
  if (draining_) {
    return End(absl::UnavailableError("draining: this server was told to stop at once"));
  }
  draining_ = true;
  spdlog::info("signal {}: draining for at most {} ms", number, limit_.count());
  WaitForSignal();
  timer_.expires_after(limit_);
  timer_.async_wait([this](boost::system::error_code error) {
    if (error) return;
    End(absl::UnavailableError(
        absl::StrCat("draining: the request did not finish within ", limit_.count(), " ms")));
  });
  engine_->Drain([this] { End(absl::OkStatus()); });
}

void Drain::End(const absl::Status& why) {
  if (!on_drained_) return;
  timer_.cancel();
  if (!why.ok()) engine_->FailAll(why);
  std::exchange(on_drained_, nullptr)();
}

}  // namespace sparsekv
