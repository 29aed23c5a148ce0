#include "base/numa.h"

#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>

namespace sparsekv {

namespace {
constexpr int kMostNodes = 1024;  // the kernel's own limit
constexpr int kWordBits = static_cast<int>(sizeof(unsigned long) * CHAR_BIT);
}  // namespace

PreferNode::PreferNode(int node) {
  if (node < 0 || node >= kMostNodes) return;
  unsigned long nodes[kMostNodes / kWordBits]{};
  nodes[node / kWordBits] = 1ul << (node % kWordBits);
  granted_ = syscall(SYS_set_mempolicy, MPOL_PREFERRED, nodes, kMostNodes + 1) == 0;
}

PreferNode::~PreferNode() {
  if (granted_) syscall(SYS_set_mempolicy, MPOL_DEFAULT, nullptr, 0);
}

int NodeOf(const std::byte* memory) {
  int node = -1;
  if (syscall(SYS_get_mempolicy, &node, nullptr, 0, memory, MPOL_F_NODE | MPOL_F_ADDR) != 0) {
    return -1;
  }
  return node;
}

}  // namespace sparsekv
