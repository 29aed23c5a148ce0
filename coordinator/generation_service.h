#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <memory>

#include "coordinator/chat/model_templates.h"
#include "coordinator/engine.h"
#include "coordinator/text_codec.h"

namespace grpc {
class Service;
}

namespace sparsekv {

// The public gRPC service. Its reactions only post to the strand (Tokenize and
// RenderChat: to the pool), and every
// call is finished exactly once, there. All arguments outlive the server that it is registered
// with, and both executors run until that has shut down.
struct GenerationServiceOptions {
  boost::asio::any_io_executor strand;
  boost::asio::any_io_executor pool;
  Engine* engine = nullptr;
  const TextCodec* codec = nullptr;
  const chat::ModelTemplates* templates = nullptr;
};
std::shared_ptr<grpc::Service> MakeGenerationService(GenerationServiceOptions options);

}  // namespace sparsekv
