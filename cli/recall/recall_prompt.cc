#include "cli/recall/recall_prompt.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "cli/recall/recall_codes.h"
#include "cli/recall/seeded_random.h"

namespace sparsekv {
namespace {

constexpr uint64_t kPromptStream = 2;

}  // namespace

uint32_t RecallPairs(uint32_t context) { return std::min(kRecallKeys, context / 4); }

RecallPrompt MakeRecallPrompt(uint32_t context, uint32_t hops, uint64_t seed) {
  RecallPrompt result;
  result.pairs = RecallPairs(context);
  CHECK_GE(hops, 1u);
  CHECK_LT(hops, result.pairs);
  SeededRandom random(seed, kPromptStream);

  // A random order of random keys, closed to a cycle: cycle[i] points to cycle[i + 1].
  std::vector<uint32_t> cycle(kRecallKeys);
  std::iota(cycle.begin(), cycle.end(), 0u);
  random.Shuffle(cycle);
  cycle.resize(result.pairs);

  // Where the pairs lie among the filler. The first token is filler: it has no token before it and
  // takes itself for that, so a key there would answer to its own question.
  const uint32_t filler = context - 1 - 2 * result.pairs;
  std::vector<uint8_t> is_pair(result.pairs + filler - 1, 0);
  std::fill_n(is_pair.begin(), result.pairs, uint8_t{1});
  random.Shuffle(is_pair);
  std::vector<uint32_t> places(
      result.pairs);  // the i-th pair of the text is that of cycle[places[i]]
  std::iota(places.begin(), places.end(), 0u);
  random.Shuffle(places);

  const auto add_filler = [&] {
    const size_t kinds = kRecallVocab - kRecallFirstFiller;
    result.prompt.push_back(kRecallFirstFiller + static_cast<uint32_t>(random.Below(kinds)));
  };
  add_filler();
  size_t next = 0;
  for (const uint8_t pair : is_pair) {
    if (!pair) {
      add_filler();
      continue;
    }
    const uint32_t place = places[next++];
    result.prompt.push_back(cycle[place]);
    result.prompt.push_back(ValueForm(cycle[(place + 1) % result.pairs]));
  }
  result.prompt.push_back(cycle[0]);
  result.expected.assign(cycle.begin() + 1, cycle.begin() + 1 + hops);
  CHECK_EQ(result.prompt.size(), size_t{context});
  return result;
}

}  // namespace sparsekv
