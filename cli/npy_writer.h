#pragma once

#include <cstdint>
#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sparsekv {

// Writes a float32 matrix as a NumPy .npy file (format 1.0, '<f4', C order), row by row.
class NpyWriter {
 public:
  static absl::StatusOr<NpyWriter> Create(const std::string& path, uint32_t rows, uint32_t cols);
  void Row(const float* values);  // [cols]
  // Not OK when a write failed or the number of rows is not what was announced.
  absl::Status Close();

 private:
  std::string path_;
  std::ofstream file_;
  uint32_t rows_ = 0, cols_ = 0, written_ = 0;
};

}  // namespace sparsekv
