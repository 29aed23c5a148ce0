#include "gpu_worker/sequence_recall.h"

#include <algorithm>
#include <cmath>

namespace sparsekv {

namespace {

constexpr uint32_t kEvery = 16;  // steps from one sample to the next
constexpr uint32_t kEveryOfTarget = 4;
constexpr uint32_t kFirstSteps = 2;  // with a target: all layers
constexpr uint32_t kMostMisses = 2;
// Parts of the way, in logarithms, to what was needed.
constexpr double kUp = 0.7, kDown = 0.1;

double Wanted(double estimated, double needed) {
  return std::clamp(needed / std::max(estimated, 1.0), kLeastGain, kMostGain);
}

}  // namespace

double NextGain(double gain, double estimated, double needed) {
  const double wanted = Wanted(estimated, needed);
  return std::clamp(gain * std::pow(wanted / gain, wanted > gain ? kUp : kDown), kLeastGain,
                    kMostGain);
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
  const double wanted = always + std::ceil(layers_[layer].gain * std::max(estimated, 1u));
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
  // What was assumed before the first sample is worth nothing beside it.
  of.gain = of.sampled ? NextGain(of.gain, estimated, needed) : Wanted(estimated, needed);
  of.sampled = true;
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
