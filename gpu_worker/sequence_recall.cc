#include "gpu_worker/sequence_recall.h"

#include <algorithm>
#include <cmath>

namespace sparsekv {

namespace {

constexpr uint32_t kEvery = 16;  // steps from one sample to the next
constexpr uint32_t kEveryOfTarget = 4;
constexpr uint32_t kFirstSteps = 4;  // with a target: all layers
constexpr uint32_t kMostMisses = 2;
constexpr double kRemembered = 10;  // samples, about
// Deviations above the mean: so many, and as many again where samples are two.
constexpr double kDeviations = 2, kDoubtAt = 2;

}  // namespace

void RowGain::Add(double estimated, double needed) {
  const double wanted = std::log(std::clamp(needed / std::max(estimated, 1.0), kLeast, kMost));
  const double part = std::max(1.0 / ++samples_, 1 / kRemembered);
  const double beyond = wanted - mean_;
  mean_ += part * beyond;
  variance_ = (1 - part) * (variance_ + part * beyond * beyond);
}

double RowGain::Value() const {
  const double above = kDeviations * std::sqrt(variance_) * (1 + kDoubtAt / samples_);
  return std::clamp(std::exp(mean_ + above), kLeast, kMost);
}

bool SequenceRecall::Samples(uint32_t layer, uint32_t position) const {
  if (layers_.empty() || position < prompt_tokens_) return false;
  const uint32_t step = position - prompt_tokens_;
  if (adaptive() && step < kFirstSteps) return true;
  const uint32_t every = adaptive() ? kEveryOfTarget : kEvery;
  return step % every == 0 && step / every % layers_.size() == layer;
}

uint32_t SequenceRecall::Choose(uint32_t layer, uint32_t always, uint32_t estimated,
                                uint32_t most) {
  const RowGain& gain = layers_[layer].gain;
  const double wanted = gain.samples() < kFirstSteps
                            ? most
                            : always + std::ceil(gain.Value() * std::max(estimated, 1u));
  return layers_[layer].rows =
             static_cast<uint32_t>(std::clamp<double>(wanted, std::min(always, most), most));
}

// Logits that are no numbers hold nothing.
double SequenceRecall::Add(double recall) {
  const double counted = std::isfinite(recall) ? std::clamp(recall, 0.0, 1.0) : 0;
  sum_ += counted;
  ++samples_;
  return counted;
}

bool SequenceRecall::Correct(uint32_t layer, uint32_t always, uint32_t estimated, uint32_t needed,
                             uint32_t most) {
  Layer& of = layers_[layer];
  of.gain.Add(estimated, needed);
  of.misses = always + needed > most ? of.misses + 1 : 0;
  if (of.whole || of.misses < kMostMisses) return false;
  return of.whole = true;
}

uint32_t SequenceRecall::whole_layers() const {
  return static_cast<uint32_t>(std::ranges::count_if(layers_, &Layer::whole));
}

uint32_t SequenceRecall::mean_rows() const {
  uint64_t rows = 0;
  for (const Layer& layer : layers_) rows += layer.rows;
  const size_t layers = std::max<size_t>(layers_.size(), 1);
  return static_cast<uint32_t>((rows + layers - 1) / layers);
}

}  // namespace sparsekv
