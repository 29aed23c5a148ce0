#pragma once

#include <sstream>
#include <string>

// Broken invariants abort with the file, the line and both values. Never for bad input: that gets a
// Status (absl/status).
namespace sparsekv::internal {

[[noreturn]] void CheckFailed(const char* file, int line, const std::string& what);

template <typename A, typename B>
[[noreturn]] void CheckOpFailed(const char* file, int line, const char* expression, const A& a,
                                const B& b) {
  std::ostringstream out;
  out << expression << " (" << +a << " vs " << +b << ")";
  CheckFailed(file, line, out.str());
}

}  // namespace sparsekv::internal

#define CHECK(condition)                                                 \
  do {                                                                   \
    if (!(condition)) [[unlikely]]                                       \
      ::sparsekv::internal::CheckFailed(__FILE__, __LINE__, #condition); \
  } while (false)

#define SPARSEKV_CHECK_OP(a, op, b)                                                        \
  do {                                                                                     \
    const auto& check_a_ = (a);                                                            \
    const auto& check_b_ = (b);                                                            \
    if (!(check_a_ op check_b_)) [[unlikely]]                                              \
      ::sparsekv::internal::CheckOpFailed(__FILE__, __LINE__, #a " " #op " " #b, check_a_, \
                                          check_b_);                                       \
  } while (false)

#define CHECK_EQ(a, b) SPARSEKV_CHECK_OP(a, ==, b)
#define CHECK_NE(a, b) SPARSEKV_CHECK_OP(a, !=, b)
#define CHECK_LE(a, b) SPARSEKV_CHECK_OP(a, <=, b)
#define CHECK_LT(a, b) SPARSEKV_CHECK_OP(a, <, b)
#define CHECK_GE(a, b) SPARSEKV_CHECK_OP(a, >=, b)
#define CHECK_GT(a, b) SPARSEKV_CHECK_OP(a, >, b)
