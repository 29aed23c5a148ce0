#include "cli/bench/selection_trace.h"

#include <algorithm>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "base/limits.h"

namespace sparsekv {

namespace {

constexpr char kMagic[] = "SPKVTRC1";
constexpr uint32_t kMaxSteps = 1 << 16;

void Put(std::ostream& out, uint32_t value) {
  out.write(reinterpret_cast<const char*>(&value), sizeof(value));
}

uint32_t Get(std::istream& in) {
  uint32_t value = 0;
  in.read(reinterpret_cast<char*>(&value), sizeof(value));
  return in ? value : 0;
}

bool Possible(const SelectionTrace::Facts& f) {
  return f.layers >= 2 && f.layers <= kMaxLayers && f.kv_heads >= 1 && f.kv_heads <= 256 &&
         f.position >= 1 && f.position < kMaxContext && f.budget >= 1 && f.budget <= kMaxContext &&
         f.steps >= 1 && f.steps <= kMaxSteps &&
         uint64_t{f.layers} * f.kv_heads * f.steps <= 1 << 24;
}

}  // namespace

absl::Status SelectionTrace::Write(const std::string& path) const {
  std::ofstream out(path, std::ios::binary);
  out.write(kMagic, 8);
  for (uint32_t value :
       {facts_.layers, facts_.kv_heads, facts_.position, facts_.budget, facts_.steps}) {
    Put(out, value);
  }
  for (const List& list : lists_) {
    Put(out, static_cast<uint32_t>(list.size()));
    out.write(reinterpret_cast<const char*>(list.data()),
              static_cast<std::streamsize>(list.size() * sizeof(uint32_t)));
  }
  out.close();
  if (!out) return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
  return absl::OkStatus();
}

absl::StatusOr<SelectionTrace> SelectionTrace::Read(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  char magic[8] = {};
  in.read(magic, 8);
  Facts facts;
  for (uint32_t* value :
       {&facts.layers, &facts.kv_heads, &facts.position, &facts.budget, &facts.steps}) {
    *value = Get(in);
  }
  if (!in || !std::equal(magic, magic + 8, kMagic) || !Possible(facts)) {
    return absl::DataLossError(absl::StrCat(path, ": is no selection trace"));
  }
  SelectionTrace trace(facts);
  for (size_t i = 0; i < trace.lists_.size(); ++i) {
    const uint32_t step = static_cast<uint32_t>(i / 2 / facts.kv_heads / facts.layers);
    const uint32_t count = Get(in);
    List& list = trace.lists_[i];
    const bool fits = count <= facts.position + step + 1;
    if (fits) {
      list.resize(count);
      in.read(reinterpret_cast<char*>(list.data()), std::streamsize{count} * 4);
    }
    const bool good = fits && in && std::ranges::is_sorted(list) &&
                      std::ranges::adjacent_find(list) == list.end() &&
                      (list.empty() || list.back() <= facts.position + step);
    if (!good) return absl::DataLossError(absl::StrCat(path, ": list ", i, " is broken"));
  }
  return trace;
}

}  // namespace sparsekv
