#pragma once

#include <cstddef>
#include <new>
#include <utility>
#include <vector>

namespace sparsekv::cpu {

// Working memory that outlives an operation, one buffer per slot (a thread, or a shared purpose).
// It grows to the largest request and is never cleared: contents are undefined at each Get. A slot
// is used by one thread at a time.
class Scratch {
 public:
  explicit Scratch(unsigned slots) : buffers_(slots) {}

  float* Get(unsigned slot, size_t floats) {
    Buffer& buffer = buffers_[slot];
    if (buffer.floats < floats) buffer = Buffer(floats);
    return buffer.data;
  }

 private:
  // A cache line and the widest vector.
  static constexpr std::align_val_t kAlignment{64};

  struct alignas(64) Buffer {  // one line each, so that threads do not share it
    Buffer() = default;
    explicit Buffer(size_t count)
        : data(static_cast<float*>(::operator new(count * sizeof(float), kAlignment))),
          floats(count) {}
    Buffer(Buffer&& other) noexcept { *this = std::move(other); }
    Buffer& operator=(Buffer&& other) noexcept {
      std::swap(data, other.data);
      std::swap(floats, other.floats);
      return *this;
    }
    ~Buffer() { ::operator delete(data, kAlignment); }

    float* data = nullptr;
    size_t floats = 0;
  };

  std::vector<Buffer> buffers_;
};

}  // namespace sparsekv::cpu
