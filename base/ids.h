#pragma once

#include <cstdint>
#include <string>

namespace sparsekv {

// A process's boot id: random, never 0, carried in every message and shared header. A peer whose
// boot id changed is a new peer, whatever its address. Drawn from the kernel's random source.
uint64_t NewBootId();

// 16 lower-case hexadecimal digits, as logs and errors show ids.
std::string HexId(uint64_t id);

}  // namespace sparsekv
