#include "kernels/backend.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/half.h"
#include "kernels/host_memory.h"

// A device whose memory is the host's and that has finished each operation when the call returns.
namespace sparsekv {

std::byte* Backend::Allocate(size_t bytes) { return AllocateOnHost(bytes); }
void Backend::Free(std::byte* memory) { FreeOnHost(memory); }
size_t Backend::free_bytes() const { return SIZE_MAX; }
bool Backend::Share(std::byte*, size_t, std::string*) { return true; }
void Backend::Unshare(std::byte*, size_t) {}
std::byte* Backend::AllocateOnLargePages(size_t, std::string* why) {
  *why = "its memory is the host's";
  return nullptr;
}
void Backend::FreeLargePages(std::byte*) {}

void Backend::Upload(void* device, const void* host, size_t bytes) { Copy(device, host, bytes); }
void Backend::Download(void* host, const void* device, size_t bytes) { Copy(host, device, bytes); }
void Backend::Fetch(void* host, const void* device, size_t bytes) { Copy(host, device, bytes); }
void Backend::Copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void Backend::Fill(void* to, uint8_t byte, size_t bytes) {
  if (bytes > 0) std::memset(to, byte, bytes);
}

void Backend::Project(const ProjectArgs& args) {
  RmsNorm({.x = args.x,
           .tokens = args.tokens,
           .weight = args.norm,
           .epsilon = args.epsilon,
           .out = args.normed});
  for (const ProjectArgs::Output& output : args.outputs) {
    Linear({.x = args.normed, .tokens = args.tokens, .weight = output.weight, .y = output.y});
  }
}

void Backend::GateUp(const GateUpArgs& args) {
  const ProjectArgs::Output both[] = {{args.gate, args.out}, {args.up, args.spare}};
  Project({.x = args.x,
           .tokens = args.tokens,
           .norm = args.norm,
           .epsilon = args.epsilon,
           .normed = args.normed,
           .outputs = both});
  SwiGlu({.gate = args.out, .up = args.spare, .tokens = args.tokens, .width = args.gate.rows});
}

void Backend::AddBias(const AddBiasArgs& args) {
  CHECK(host_memory());
  const size_t width = args.bias.cols;
  std::vector<float> bias(width);
  for (size_t i = 0; i < width; ++i) bias[i] = LoadValue(args.bias.data, i, args.bias.dtype);
  for (size_t t = 0; t < args.tokens; ++t) {
    float* x = args.x + t * width;
    for (size_t i = 0; i < width; ++i) x[i] += bias[i];
  }
}

void Backend::RowMass(const RowMassArgs&) { CHECK(host_memory()); }
void Backend::CountScores(const ScoreHistogramArgs&) { CHECK(host_memory()); }

void Backend::RotateAppend(const RotateAppendArgs& args) {
  RopeArgs rope = {.x = args.q,
                   .positions = args.positions,
                   .inverse_frequency = args.inverse_frequency,
                   .heads = args.heads,
                   .head_dim = args.head_dim};
  Rope(rope);
  rope.x = args.k;
  rope.heads = args.kv_heads;
  Rope(rope);
  AppendRows({.k = args.k, .v = args.v, .items = args.rows});
  AppendLabels({.k = args.k,
                .kv_heads = args.kv_heads,
                .head_dim = args.head_dim,
                .row_dtype = args.row_dtype,
                .channels = args.channels,
                .items = args.labels});
}

void Backend::ScoreSelect(const ScoreLabelsArgs& score, const SelectArgs& select) {
  ScoreLabels(score);
  Select(select);
}

void Backend::Sample(std::span<const SampleArgs> args, SampledToken* tokens) {
  for (const SampleArgs& one : args) *tokens++ = Sample(one);
}

}  // namespace sparsekv
