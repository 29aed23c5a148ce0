#pragma once

#include <memory>

#include "absl/status/status.h"
#include "sparsekv/v1/generation.pb.h"

namespace sparsekv {

// Where the engine puts what a client gets. Only the strand calls. Writes never block: while one
// message is on its way the ones after it are merged into one, so that a slow reader costs at most
// its own completion. Whoever holds a stream finishes it, exactly once; nothing is written after
// that.
class ResponseStream {
 public:
  virtual ~ResponseStream() = default;
  virtual void Write(v1::GenerateResponse delta) = 0;
  virtual void Finish(const absl::Status& status) = 0;
};

// Appends a delta to one that has not been sent: texts, ids and logprobs in a row, the rest as the
// later one says.
inline void MergeResponse(v1::GenerateResponse&& later, v1::GenerateResponse* into) {
  std::string text = std::move(*into->mutable_text());
  text += later.text();
  into->MergeFrom(later);
  into->set_text(std::move(text));
}

}  // namespace sparsekv
