#pragma once

#include <cstddef>

namespace sparsekv {

// Memory that this thread allocates while one lives comes from that node of the machine as long as
// there is some; -1: from wherever the kernel takes it. Which memory it is changes speed only, so a
// kernel without nodes, or a node that is not there, is no error: `granted` is false.
class PreferNode {
 public:
  explicit PreferNode(int node);
  ~PreferNode();
  PreferNode(const PreferNode&) = delete;
  PreferNode& operator=(const PreferNode&) = delete;

  bool granted() const { return granted_; }

 private:
  bool granted_ = false;
};

// The node of the page that holds this byte, which was touched before; -1 where the kernel does not
// say.
int NodeOf(const std::byte* memory);

}  // namespace sparsekv
