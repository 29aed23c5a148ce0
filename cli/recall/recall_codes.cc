#include "cli/recall/recall_codes.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "base/check.h"
#include "cli/recall/seeded_random.h"

namespace sparsekv {
namespace {

constexpr uint64_t kCodeStream = 1;
constexpr double kHardAmplification = 3.0;  // of the heavy components' deviation
constexpr double kHardEnergy = 38.0;        // the easy codes' at 64 components
constexpr double kGrid = 16.0;              // hard components are multiples of 1/16

using Point = std::vector<int>;

// Appends every integer point that continues `point` to `dims` components of squared norm `norm`.
void Enumerate(Point& point, size_t dims, int norm, std::vector<Point>& points) {
  if (point.size() == dims) {
    if (norm == 0) points.push_back(point);
    return;
  }
  const int limit = static_cast<int>(std::sqrt(norm));
  for (int x = -limit; x <= limit; ++x) {
    point.push_back(x);
    Enumerate(point, dims, norm - x * x, points);
    point.pop_back();
  }
}

// E8 in doubled coordinates: all even or all odd, the sum a multiple of 4.
bool InDoubledE8(const Point& point) {
  int sum = 0;
  for (int x : point) {
    if (std::abs(x) % 2 != std::abs(point[0]) % 2) return false;
    sum += x;
  }
  return sum % 4 == 0;
}

std::vector<Point> Shell(uint32_t dims) {
  std::vector<Point> points;
  Point point;
  if (dims == 8) {
    Enumerate(point, dims, 24, points);
    std::erase_if(points, [](const Point& p) { return !InDoubledE8(p); });
  } else {
    CHECK_EQ(dims, 4u);
    Enumerate(point, dims, 521, points);
  }
  CHECK_GE(points.size(), size_t{kRecallVocab});
  return points;
}

void FillEasy(RecallCodes& codes, SeededRandom& random) {
  // Amplitudes that leave about 60 % of the energy to the heavy components.
  const float heavy_unit = codes.heavy == 8 ? 1.0f : 0.25f;
  const float light = codes.heavy == 8 ? 0.5f : 0.75f;
  std::vector<Point> points = Shell(codes.heavy);
  random.Shuffle(points);
  for (uint32_t token = 0; token < kRecallVocab; ++token) {
    for (int x : points[token]) codes.values.push_back(heavy_unit * static_cast<float>(x));
    for (uint32_t i = codes.heavy; i < codes.dims; ++i) {
      codes.values.push_back(random.Next() >> 63 ? light : -light);
    }
  }
}

void FillHard(RecallCodes& codes, SeededRandom& random) {
  std::vector<double> code(codes.dims);
  for (uint32_t token = 0; token < kRecallVocab; ++token) {
    double energy = 0;
    for (uint32_t i = 0; i < codes.dims; ++i) {
      code[i] = random.Normal() * (i < codes.heavy ? kHardAmplification : 1.0);
      energy += code[i] * code[i];
    }
    const double scale = std::sqrt(kHardEnergy / energy);
    for (double x : code) {
      codes.values.push_back(static_cast<float>(std::round(x * scale * kGrid) / kGrid));
    }
  }
}

}  // namespace

RecallCodes MakeRecallCodes(RecallDifficulty difficulty, uint32_t dims, uint64_t seed) {
  CHECK(dims == 32 || dims == 64);
  RecallCodes codes;
  codes.dims = dims;
  codes.heavy = dims / 8;
  codes.values.reserve(size_t{kRecallVocab} * dims);
  SeededRandom random(seed, kCodeStream);
  if (difficulty == RecallDifficulty::kEasy) {
    FillEasy(codes, random);
  } else {
    FillHard(codes, random);
  }
  for (float x : codes.values) codes.energy += double{x} * x;
  codes.energy /= kRecallVocab;
  return codes;
}

}  // namespace sparsekv
