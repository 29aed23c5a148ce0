#pragma once

#include <optional>
#include <string_view>

#include "coordinator/chat/value.h"

namespace sparsekv::chat {

// int(text) and float(text) of Python; nothing where those raise ValueError. The first throws for
// an integer beyond 64 bits.
std::optional<int64_t> ParseInteger(std::string_view text);
std::optional<double> ParseFloat(std::string_view text);

// round(value, digits), which goes by the exact value and halves to even.
double Round(double value, int64_t digits);

}  // namespace sparsekv::chat
