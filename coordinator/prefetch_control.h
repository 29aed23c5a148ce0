#pragma once

namespace sparsekv {

// --predict and --correction.
struct PrefetchOptions {
  bool predict = true;
  bool correct = true;  // false: predicted layers attend what was predicted and nothing else
};

}  // namespace sparsekv
