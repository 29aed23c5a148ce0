#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

// What a fuzz target is: `LLVMFuzzerTestOneInput`, in a file of its own. README.md says how to add
// one.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace sparsekv::fuzz {

inline std::string_view AsText(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// A directory of this process in memory, or in the temporary folder where there is no /dev/shm;
// removed at the end of the process.
const std::string& Directory();

// Creates or replaces a file of Directory().
void WriteFile(const std::string& name, std::string_view content);

// Aborts unless the message is one line.
void CheckOneLine(std::string_view message);

}  // namespace sparsekv::fuzz
