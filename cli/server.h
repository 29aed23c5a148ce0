#pragma once

#include "absl/status/status.h"
#include "cli/serve_options.h"

namespace sparsekv {

// Runs a server until SIGTERM or SIGINT: prints the ready line, starts children again when they
// die, and at the end drains the coordinator (at most 30 s), stops the rest and leaves nothing
// behind. Not OK when it cannot start or when a child keeps dying.
absl::Status Serve(const ServeOptions& options);

}  // namespace sparsekv
