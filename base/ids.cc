#include "base/ids.h"

#include <sys/random.h>

#include <cstdio>

#include "base/check.h"

namespace sparsekv {

uint64_t NewBootId() {
  uint64_t id = 0;
  while (id == 0) CHECK_EQ(getrandom(&id, sizeof id, 0), static_cast<ssize_t>(sizeof id));
  return id;
}

std::string HexId(uint64_t id) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(id));
  return text;
}

}  // namespace sparsekv
