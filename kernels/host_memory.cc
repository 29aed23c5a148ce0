#include "kernels/host_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace sparsekv {
namespace {
constexpr size_t kAlign = 256;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLarge = 16 * kHugePage;

// Labels and rows are read at random: with pages of 4 KiB a third of that is looking up addresses.
// Advice, which the kernel may not take.
void AskForHugePages(std::byte* memory, size_t bytes) {
  if (bytes < kLarge) return;
  const auto skip = -reinterpret_cast<uintptr_t>(memory) % kHugePage;
  madvise(memory + skip, (bytes - skip) / kHugePage * kHugePage, MADV_HUGEPAGE);
}
}  // namespace

// calloc, which leaves large memory as the kernel zeroed it, aligns to 16 bytes only. What it gave
// is kept right before what is given on.
std::byte* AllocateOnHost(size_t bytes) {
  if (bytes > SIZE_MAX - kAlign) return nullptr;
  auto* const given = static_cast<std::byte*>(std::calloc(bytes + kAlign, 1));
  if (given == nullptr) return nullptr;
  AskForHugePages(given, bytes);
  std::byte* const memory = given + kAlign - reinterpret_cast<uintptr_t>(given) % kAlign;
  std::memcpy(memory - sizeof(given), &given, sizeof(given));
  return memory;
}

void FreeOnHost(std::byte* memory) {
  if (memory == nullptr) return;
  void* given;
  std::memcpy(&given, memory - sizeof(given), sizeof(given));
  std::free(given);
}

}  // namespace sparsekv
