#include "cli/npy_writer.h"

#include "absl/strings/str_cat.h"

namespace sparsekv {

absl::StatusOr<NpyWriter> NpyWriter::Create(const std::string& path, uint32_t rows, uint32_t cols) {
  NpyWriter writer;
  writer.path_ = path;
  writer.rows_ = rows;
  writer.cols_ = cols;
  writer.file_.open(path, std::ios::binary | std::ios::trunc);
  if (!writer.file_) return absl::PermissionDeniedError(absl::StrCat(path, ": cannot be written"));
  std::string header =
      absl::StrCat("{'descr': '<f4', 'fortran_order': False, 'shape': (", rows, ", ", cols, "), }");
  constexpr size_t kPreamble = 10;  // magic, version, header length
  header.append(63 - (kPreamble + header.size()) % 64, ' ');
  header.push_back('\n');
  const char magic[] = {'\x93', 'N', 'U', 'M', 'P', 'Y', 1, 0};
  writer.file_.write(magic, sizeof magic);
  const char length[] = {static_cast<char>(header.size() & 0xff),
                         static_cast<char>(header.size() >> 8)};
  writer.file_.write(length, sizeof length);
  writer.file_.write(header.data(), static_cast<std::streamsize>(header.size()));
  return writer;
}

void NpyWriter::Row(const float* values) {
  file_.write(reinterpret_cast<const char*>(values), std::streamsize{4} * cols_);
  ++written_;
}

absl::Status NpyWriter::Close() {
  file_.close();
  if (!file_ || written_ != rows_) {
    return absl::DataLossError(absl::StrCat(path_, ": ", written_, " of ", rows_, " rows written"));
  }
  return absl::OkStatus();
}

}  // namespace sparsekv
