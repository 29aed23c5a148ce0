#pragma once

namespace sparsekv {
inline constexpr char kVersion[] = "0.1.0";
}
