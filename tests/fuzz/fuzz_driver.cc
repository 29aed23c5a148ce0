// Runs a fuzz target without libFuzzer, for CI: every file of a corpus, then random changes of
// them.
//   fuzz_TARGET_short CORPUS [SEED]
// It ends after kRounds inputs or kSeconds, whichever comes first. An input that crashes is lost
// with the process, so it is written to CRASH_FILE first, which is removed when all is well.
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/fuzz_target.h"

namespace {

constexpr size_t kRounds = 4000;
constexpr time_t kSeconds = 10;
constexpr size_t kMaxBytes = size_t{1} << 16;

std::string ReadAll(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// One change: a byte or bit, a stretch removed, doubled, or taken from another input.
void Change(const std::vector<std::string>& corpus, std::mt19937* random, std::string* input) {
  const auto below = [&](size_t limit) { return limit == 0 ? 0 : (*random)() % limit; };
  const size_t at = below(input->size() + 1);
  const size_t length = std::min(input->size() - at, below(32) + 1);
  const std::string& other = corpus[below(corpus.size())];
  const size_t other_at = below(other.size() + 1);
  const std::string piece = other.substr(other_at, below(64) + 1);
  switch (below(6)) {
    case 0:
      if (at < input->size()) (*input)[at] = static_cast<char>((*random)());
      break;
    case 1:
      if (at < input->size()) (*input)[at] = static_cast<char>((*input)[at] ^ (1 << below(8)));
      break;
    case 2:
      input->erase(at, length);
      break;
    case 3:
      input->insert(at, input->substr(at, length));
      break;
    case 4:
      input->insert(at, piece);
      break;
    default:
      input->replace(at, length, piece);
  }
  if (input->size() > kMaxBytes) input->resize(kMaxBytes);
}

void Run(const std::string& input, const std::string& crash_file) {
  std::ofstream(crash_file, std::ios::binary) << input;
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s CORPUS [SEED]\n", argv[0]);
    return 2;
  }
  const unsigned long seed = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 1;
  std::vector<std::string> corpus = {""};
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    corpus.push_back(ReadAll(entry.path()));
  }
  const std::string crash_file = std::string(argv[0]) + ".crash";
  std::printf("%s: %zu files, seed %lu; a crash leaves its input in %s\n", argv[0],
              corpus.size() - 1, seed, crash_file.c_str());
  std::fflush(stdout);
  for (const std::string& input : corpus) Run(input, crash_file);
  std::mt19937 random(static_cast<uint32_t>(seed));
  const time_t end = time(nullptr) + kSeconds;
  size_t rounds = 0;
  for (; rounds < kRounds && time(nullptr) < end; ++rounds) {
    std::string input = corpus[random() % corpus.size()];
    for (size_t changes = random() % 4 + 1; changes > 0; --changes) Change(corpus, &random, &input);
    Run(input, crash_file);
  }
  std::filesystem::remove(crash_file);
  std::printf("%zu changed inputs\n", rounds);
  return 0;
}
