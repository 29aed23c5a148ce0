#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sparsekv/v1/generation.pb.h"

namespace sparsekv::testing {

// How one Generate call went.
struct Reply {
  int code = -1;  // gRPC status code
  std::string message;
  std::string text;
  std::vector<uint32_t> ids;
  std::vector<v1::TokenLogprobs> logprobs;
  v1::GenerateResponse first, last;
};

// A plain client of the public port. Any thread may call.
class Client {
 public:
  struct Call {
    double deadline_s = 0;                  // 0 = none
    size_t cancel_after_tokens = SIZE_MAX;  // then TryCancel
  };

  explicit Client(const std::string& address);
  ~Client();

  Reply Generate(const v1::GenerateRequest& request) { return Generate(request, Call()); }
  Reply Generate(const v1::GenerateRequest& request, const Call& call);
  v1::ModelInfoResponse ModelInfo();
  std::vector<uint32_t> Tokenize(const std::string& text);
  // grpc.health.v1 of the whole server: true = SERVING.
  bool Healthy();

 private:
  struct Stubs;
  std::unique_ptr<Stubs> stubs_;
};

v1::GenerateRequest TextRequest(const std::string& prompt, uint32_t max_new_tokens);
v1::GenerateRequest IdsRequest(const std::vector<uint32_t>& ids, uint32_t max_new_tokens);

}  // namespace sparsekv::testing
