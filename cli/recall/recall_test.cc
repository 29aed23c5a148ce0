#include "cli/recall/recall.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

#include "cli/recall/recall_prompt.h"
#include "cli/recall/recall_tokenizer.h"
#include "gpu_worker/checkpoint/checkpoint_testing.h"
#include "gpu_worker/checkpoint/weights.h"
#include "kernels/half.h"

namespace sparsekv {
namespace {

using nlohmann::json;
using testing::TempDir;

json ReadJson(const std::string& path) {
  std::ifstream in(path);
  return json::parse(in);
}

std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

double Product(std::span<const float> a, std::span<const float> b, uint32_t count) {
  double sum = 0;
  for (uint32_t i = 0; i < count; ++i) sum += double{a[i]} * b[i];
  return sum;
}

// The least difference between a code's product with itself and with any other code, as a share of
// the former, over the first `count` components.
double Margin(const RecallCodes& codes, uint32_t count) {
  double margin = 1;
  for (uint32_t a = 0; a < kRecallVocab; a += 7) {
    const double own = Product(codes.Code(a), codes.Code(a), count);
    for (uint32_t b = 0; b < kRecallVocab; ++b) {
      if (a == b) continue;
      margin = std::min(margin, 1 - Product(codes.Code(a), codes.Code(b), count) / own);
    }
  }
  return margin;
}

TEST(RecallCodes, EasyCodesAreToldApartByTheirHeavyComponents) {
  const RecallCodes wide = MakeRecallCodes(RecallDifficulty::kEasy, 64, 1);
  EXPECT_EQ(wide.heavy, 8u);
  EXPECT_GE(Margin(wide, 8), 1.0 / 6 - 1e-9);
  EXPECT_GE(Margin(wide, 64), 0.1);
  const RecallCodes narrow = MakeRecallCodes(RecallDifficulty::kEasy, 32, 1);
  EXPECT_EQ(narrow.heavy, 4u);
  EXPECT_GE(Margin(narrow, 4), 1.0 / 521 - 1e-9);
  for (const RecallCodes* codes : {&wide, &narrow}) {
    for (uint32_t token = 0; token < kRecallVocab; ++token) {
      const auto code = codes->Code(token);
      EXPECT_EQ(Product(code, code, codes->heavy),
                Product(codes->Code(0), codes->Code(0), codes->heavy));
      EXPECT_NEAR(Product(code, code, codes->dims), codes->energy, 1e-9);
    }
  }
}

TEST(RecallCodes, EveryComponentIsExactInSixteenBits) {
  for (RecallDifficulty difficulty : {RecallDifficulty::kEasy, RecallDifficulty::kHard}) {
    for (uint32_t dims : {32u, 64u}) {
      const RecallCodes codes = MakeRecallCodes(difficulty, dims, 3);
      EXPECT_EQ(codes.values.size(), size_t{kRecallVocab} * dims);
      for (float x : codes.values) {
        ASSERT_EQ(Rounded(x, DType::kBF16), x);
        ASSERT_EQ(Rounded(x, DType::kF16), x);
      }
    }
  }
}

TEST(RecallPrompt, IsAChaseThroughItsPairs) {
  for (const auto& [context, hops] :
       {std::pair{256u, 63u}, {1000u, 64u}, {2048u, 64u}, {16384u, 999u}}) {
    const RecallPrompt chase = MakeRecallPrompt(context, hops, context);
    ASSERT_EQ(chase.prompt.size(), context);
    ASSERT_EQ(chase.expected.size(), hops);
    EXPECT_EQ(chase.pairs, std::min(1000u, context / 4));
    EXPECT_GE(chase.prompt[0], kRecallFirstFiller);

    std::map<uint32_t, uint32_t> points_to;
    size_t fillers = 0;
    for (size_t i = 0; i + 1 < context; ++i) {
      const uint32_t token = chase.prompt[i];
      ASSERT_LT(token, kRecallVocab);
      if (token >= kRecallFirstFiller) {
        ++fillers;
      } else {
        const uint32_t value = chase.prompt[++i];
        ASSERT_LT(token, kRecallKeys);
        ASSERT_GE(value, kRecallKeys);
        ASSERT_LT(value, kRecallFirstFiller);
        EXPECT_TRUE(points_to.emplace(token, value - kRecallKeys).second) << "a key in two pairs";
      }
    }
    EXPECT_EQ(points_to.size(), chase.pairs);
    EXPECT_EQ(fillers, context - 1 - 2 * chase.pairs);

    uint32_t asked = chase.prompt.back();
    std::set<uint32_t> seen = {asked};
    for (uint32_t answer : chase.expected) {
      ASSERT_TRUE(points_to.contains(asked));
      EXPECT_EQ(points_to[asked], answer);
      EXPECT_TRUE(seen.insert(answer).second) << "a key asked twice";
      asked = answer;
    }
  }
}

TEST(RecallTokenizer, TextAndIdsAreOneToOne) {
  EXPECT_EQ(RecallTokenText(0), "\u4e00");
  EXPECT_EQ(RecallTokenText(4095), "\u5dff");
  const json tokenizer = json::parse(RecallTokenizerJson());
  EXPECT_EQ(tokenizer["model"]["type"], "BPE");
  EXPECT_EQ(tokenizer["model"]["vocab"].size(), kRecallVocab);
  EXPECT_EQ(tokenizer["model"]["vocab"]["\u4e02"], 2);
  EXPECT_TRUE(tokenizer["model"]["merges"].empty());
  EXPECT_EQ(RecallText(std::vector<uint32_t>{1, 2}), "\u4e01\u4e02");
}

// What every variant must satisfy, loaded back as any checkpoint is.
void CheckFiles(const RecallOptions& options) {
  const auto summary = MakeRecall(options);
  ASSERT_TRUE(summary.ok()) << summary.status();
  const auto checkpoint = LoadCheckpoint(options.out);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelConfig& config = checkpoint->config;
  EXPECT_EQ(checkpoint->weights->fingerprint(), summary->fingerprint);
  EXPECT_EQ(config.layers, 2 + options.model.extra_layers);
  EXPECT_EQ(config.kv_heads, options.model.kv_heads);
  EXPECT_EQ(config.group(), options.model.group);
  EXPECT_EQ(config.row_dtype, options.model.dtype);
  EXPECT_GE(config.max_context, options.context + options.hops);
  EXPECT_TRUE(config.eos_ids.empty());
  EXPECT_FALSE(config.bos_id.has_value());

  const auto channels =
      ChannelConfig::Load(options.out + "/channels.json", config, summary->fingerprint);
  ASSERT_TRUE(channels.ok()) << channels.status();
  EXPECT_EQ(channels->channels, config.head_dim / 16);
  const uint32_t last = config.layers - 1;
  for (uint32_t i = 0; i < config.kv_heads * channels->channels; ++i) {
    EXPECT_GE(channels->Layer(last)[i] % (config.head_dim / 2), config.head_dim / 4);  // slow pairs
  }

  const json chase = ReadJson(options.out + "/chase.json");
  EXPECT_EQ(chase["context"], options.context);
  EXPECT_EQ(chase["hops"], options.hops);
  EXPECT_EQ(chase["prompt_token_ids"].size(), options.context);
  EXPECT_EQ(chase["expected_token_ids"].size(), options.hops);
  EXPECT_EQ(ReadText(options.out + "/chase.txt"),
            RecallText(chase["prompt_token_ids"].get<std::vector<uint32_t>>()));
  EXPECT_EQ(ReadJson(options.out + "/tokenizer.json"), json::parse(RecallTokenizerJson()));
}

TEST(Recall, WritesACheckpointThatLoads) {
  TempDir dir;
  RecallOptions options;
  options.out = dir.File("deep/recall");
  options.context = 2048;
  CheckFiles(options);
}

TEST(Recall, WritesEveryVariant) {
  TempDir dir;
  RecallOptions options;
  options.out = dir.path();
  options.context = 300;
  options.hops = 20;
  options.model = {.difficulty = RecallDifficulty::kHard,
                   .kv_heads = 2,
                   .group = 3,
                   .head_dim = 64,
                   .extra_layers = 2,
                   .loud_channels = 3,
                   .dtype = DType::kBF16,
                   .seed = 5};
  CheckFiles(options);
  options.model.dtype = DType::kF16;
  options.model.difficulty = RecallDifficulty::kEasy;
  CheckFiles(options);
}

TEST(Recall, TheSameOptionsGiveTheSameBytes) {
  TempDir dir;
  RecallOptions options;
  options.context = 512;
  options.model.dtype = DType::kBF16;
  options.model.extra_layers = 1;
  for (const char* name : {"a", "b"}) {
    options.out = dir.File(name);
    ASSERT_TRUE(MakeRecall(options).ok());
  }
  for (const char* file : {"config.json", "model.safetensors", "tokenizer.json", "channels.json",
                           "chase.json", "chase.txt"}) {
    EXPECT_EQ(ReadText(dir.File("a/") + file), ReadText(dir.File("b/") + file)) << file;
  }
  options.model.seed = 1;
  ASSERT_TRUE(MakeRecall(options).ok());
  EXPECT_NE(ReadText(dir.File("a/chase.txt")), ReadText(dir.File("b/chase.txt")));
  EXPECT_NE(ReadText(dir.File("a/model.safetensors")), ReadText(dir.File("b/model.safetensors")));
}

TEST(Recall, RefusesOptionsOutOfBounds) {
  TempDir dir;
  const auto error = [&](auto change) {
    RecallOptions options;
    options.out = dir.path();
    change(options);
    const auto summary = MakeRecall(options);
    EXPECT_EQ(summary.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(summary.status().message());
  };
  EXPECT_EQ(error([](RecallOptions& o) { o.context = 256; }),
            "--hops 64 needs --context 260 or more, so that no key is asked twice");
  EXPECT_EQ(error([](RecallOptions& o) { o.context = 10; }), "--context 10 is not in 256..8388608");
  EXPECT_EQ(error([](RecallOptions& o) { o.hops = 1000; }), "--hops 1000 is not in 1..999");
  EXPECT_EQ(error([](RecallOptions& o) { o.model.head_dim = 96; }),
            "--head-dim 96 is not 64 or 128");
  EXPECT_EQ(error([](RecallOptions& o) { o.model.kv_heads = 0; }), "--kv-heads 0 is not in 1..16");
  EXPECT_EQ(error([](RecallOptions& o) { o.model.group = 65; }), "--group 65 is not in 1..64");
  EXPECT_EQ(error([](RecallOptions& o) { o.model.extra_layers = 65; }),
            "--extra-layers 65 is not in 0..64");
  EXPECT_EQ(error([](RecallOptions& o) { o.model.loud_channels = 9; }),
            "--loud-channels 9 is not in 0..8");
  EXPECT_EQ(error([](RecallOptions& o) { o.out.clear(); }), "--out is missing");
  RecallOptions options;
  options.out = "/proc/none/x";
  EXPECT_FALSE(MakeRecall(options).ok());
}

}  // namespace
}  // namespace sparsekv
