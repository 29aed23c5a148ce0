#pragma once

#include <string>

namespace sparsekv::chat {

enum class ErrorKind {
  kSyntax,       // not Jinja
  kUnsupported,  // Jinja that is not in our subset
  kRaised,       // raise_exception: the template refuses this conversation
  kUndefined,    // a value that is not there was used
  kRuntime,      // what would be a TypeError, ValueError, ... in Python
  kLimit,        // a TemplateLimits field
};

// How an error travels inside this folder: thrown where it is found, given its line by the node
// that it belongs to, caught in template.cc. No exception leaves the folder.
struct TemplateError {
  ErrorKind kind;
  std::string message;  // one line
  int line = 0;         // 0 = not known yet
};

}  // namespace sparsekv::chat
