#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "coordinator/chat/error.h"

namespace sparsekv::chat {

// Memory for the values of one rendering, given back all at once: no value has a destructor, so
// nothing recurses over data and cycles cost nothing. Throws kLimit past `limit` bytes.
class Arena {
 public:
  explicit Arena(size_t limit) : limit_(limit) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void* Allocate(size_t bytes) {
    bytes = (bytes + 15) & ~size_t{15};
    if (bytes > left_) Refill(bytes);
    void* place = next_;
    next_ += bytes;
    left_ -= bytes;
    return place;
  }

  template <typename T, typename... Args>
  T* New(Args&&... args) {
    static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= 16);
    return new (Allocate(sizeof(T))) T{std::forward<Args>(args)...};
  }

  template <typename T>
  T* Array(size_t count) {
    static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= 16);
    T* array = static_cast<T*>(Allocate(count * sizeof(T)));
    std::uninitialized_value_construct_n(array, count);
    return array;
  }

  template <typename T>
  const T* Copy(const std::vector<T>& from) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (from.empty()) return nullptr;
    void* place = Allocate(from.size() * sizeof(T));
    std::memcpy(place, from.data(), from.size() * sizeof(T));
    return static_cast<const T*>(place);
  }

  std::string_view Copy(std::string_view text) {
    if (text.empty()) return {};
    char* place = static_cast<char*>(Allocate(text.size()));
    std::memcpy(place, text.data(), text.size());
    return {place, text.size()};
  }

 private:
  static constexpr size_t kChunk = 16 << 10;

  void Refill(size_t bytes) {
    const size_t chunk = bytes > kChunk ? bytes : kChunk;
    if (chunk > limit_ - used_) throw TemplateError{ErrorKind::kLimit, "memory_bytes", 0};
    used_ += chunk;
    chunks_.push_back(std::make_unique_for_overwrite<char[]>(chunk));
    next_ = chunks_.back().get();
    left_ = chunk;
  }

  const size_t limit_;
  size_t used_ = 0;  // <= limit_
  std::vector<std::unique_ptr<char[]>> chunks_;
  char* next_ = nullptr;
  size_t left_ = 0;
};

}  // namespace sparsekv::chat
