#pragma once

#include <memory>
#include <string_view>

#include "coordinator/chat/ast.h"
#include "coordinator/chat/limits.h"

namespace sparsekv::chat {

// A template's tree. Throws kSyntax, kUnsupported and kLimit, with the line.
// REQUIRES: source is valid UTF-8.
std::unique_ptr<const Tree> ParseTemplate(std::string_view source, const TemplateLimits& limits);

}  // namespace sparsekv::chat
