// `sparsekv eval` as a command: figures of a really trained checkpoint, a sweep that is killed and
// goes on, and one line for every bad file.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/server_process.h"

namespace sparsekv {
namespace {

using testing::RunBinary;
using testing::ScratchDir;

const std::string kDemo = std::string(SPARSEKV_SOURCE_DIR) + "/deploy/demo";
const std::string kShared = std::string(SPARSEKV_SOURCE_DIR) + "/../shared/data";

using Arguments = std::vector<std::string>;

Arguments With(Arguments all, const Arguments& more) {
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

nlohmann::json Results(const std::string& out) {
  const auto json = nlohmann::json::parse(out, nullptr, false);
  EXPECT_TRUE(json.is_object()) << out;
  return json;
}

std::string Write(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

std::string Read(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

TEST(Eval, PerplexityOfStories) {
  if (!std::filesystem::exists(kShared)) GTEST_SKIP() << "no " << kShared;
  const struct {
    std::string text;
    int scored;
    double nll;
  } cases[] = {{"/texts/tinystories_sample.txt", 1879, 1.823277},
               {"/stories260k/golden/bible20k.txt", 11034, 4.214095}};
  for (const auto& c : cases) {
    const auto run = RunBinary("sparsekv", {"eval", "--model", kShared + "/stories260k/hf",
                                            "--task", "perplexity", "--text", kShared + c.text,
                                            "--context", "512", "--policy", "dense", "--json"});
    ASSERT_EQ(run.code, 0) << run.err;
    const auto task = Results(run.out)["tasks"][0];
    EXPECT_EQ(task["units"], c.scored);
    EXPECT_NEAR(task["results"][0]["mean_nll"].get<double>(), c.nll, 5e-5);
  }
}

const Arguments kSweep = {
    "eval",     "--model",   kDemo,         "--task",   "kv-retrieval,passkey",
    "--cases",  "3",         "--questions", "2",        "--phrasing",
    "lookup",   "--context", "256",         "--policy", "double-sparsity",
    "--policy", "h2o",       "--policy",    "random",   "--budget",
    "1/2,100",  "--json"};

// Cut anywhere, in the middle of a line too: the same JSON.
TEST(Eval, AKilledSweepGoesOn) {
  ScratchDir dir;
  const std::string state = dir.path() + "/state";
  const auto whole = RunBinary("sparsekv", kSweep);
  ASSERT_EQ(whole.code, 0) << whole.err;
  const Arguments kept = With(kSweep, {"--state", state});
  EXPECT_EQ(RunBinary("sparsekv", kept).out, whole.out);
  const std::string all = Read(state);
  for (double share : {0.0, 0.05, 0.4, 0.83, 1.0}) {
    Write(state, all.substr(0, static_cast<size_t>(share * static_cast<double>(all.size()))));
    const auto again = RunBinary("sparsekv", kept);
    EXPECT_EQ(again.out, whole.out) << share << ": " << again.err;
    EXPECT_EQ(Read(state), all) << share;
  }
  // And really killed, whenever that hits it.
  for (const char* seconds : {"0.2", "0.6"}) {
    std::filesystem::remove(state);
    std::string command =
        std::string("timeout -s KILL ") + seconds + " " SPARSEKV_BIN_DIR "/sparsekv";
    for (const std::string& argument : kept) command += " '" + argument + "'";
    [[maybe_unused]] const int killed = std::system((command + " >/dev/null 2>&1").c_str());
    EXPECT_EQ(RunBinary("sparsekv", kept).out, whole.out);
  }
}

// Cases, or the candidates of few cases, side by side: the same JSON, from any order of a state.
TEST(Eval, JobsGiveWhatOneGives) {
  const auto one = RunBinary("sparsekv", kSweep);
  ASSERT_EQ(one.code, 0) << one.err;
  ScratchDir dir;
  const std::string state = dir.path() + "/state";
  for (const char* jobs : {"2", "3", "16"}) {
    std::filesystem::remove(state);
    const Arguments kept = With(kSweep, {"--jobs", jobs, "--state", state});
    EXPECT_EQ(RunBinary("sparsekv", kept).out, one.out) << jobs;
    EXPECT_EQ(RunBinary("sparsekv", kept).out, one.out) << jobs << ", all kept";
  }
}

// Jobs that would have nothing to do take no memory: with rows and keys of 8192 tokens in float32,
// a thousand would need 64 GiB.
TEST(Eval, NoMoreJobsThanThereIsToDo) {
  ScratchDir dir;
  std::filesystem::create_directories(dir.path() + "/test");
  Write(dir.path() + "/test/law_test.csv", "Who?,I,you,he,she,A\nWhat?,a,b,c,d,B\n");
  const Arguments one = {"eval",   "--model",  kDemo,      "--task", "mmlu",
                         "--file", dir.path(), "--shots",  "0",      "--context",
                         "8192",   "--json",   "--policy", "random", "--jobs"};
  const auto alone = RunBinary("sparsekv", With(one, {"1"}));
  ASSERT_EQ(alone.code, 0) << alone.err;
  EXPECT_EQ(RunBinary("sparsekv", With(one, {"1024"})).out, alone.out);
}

// More cases, policies and budgets than a state has: only what is missing is done.
TEST(Eval, AStateIsWidened) {
  ScratchDir dir;
  const std::string state = dir.path() + "/state";
  const Arguments narrow = {"eval",     "--model",   kDemo,        "--task",   "kv-retrieval",
                            "--cases",  "2",         "--phrasing", "lookup",   "--questions",
                            "2",        "--context", "256",        "--policy", "h2o",
                            "--budget", "100",       "--json",     "--state",  state};
  ASSERT_EQ(RunBinary("sparsekv", narrow).code, 0);
  const std::string before = Read(state);
  EXPECT_EQ(std::ranges::count(before, '\n'), 1 + 2 * 2);  // the head; dense and h2o twice
  const auto wide = RunBinary("sparsekv", With(kSweep, {"--state", state}));
  EXPECT_EQ(wide.out, RunBinary("sparsekv", kSweep).out) << wide.err;
  EXPECT_TRUE(Read(state).starts_with(before));
  EXPECT_EQ(std::ranges::count(Read(state), '\n'), 1 + 2 * 3 * 7);
}

// A directory of questions is known by what its files say, not by where it is.
TEST(Eval, AStateIsOfOneDirectory) {
  ScratchDir dir;
  const auto questions = [&](const std::string& name, const std::string& text) {
    std::filesystem::create_directories(dir.path() + "/" + name + "/test");
    Write(dir.path() + "/" + name + "/test/law_test.csv", text);
    return dir.path() + "/" + name;
  };
  const std::string state = dir.path() + "/state";
  const auto run = [&](const std::string& file) {
    return RunBinary("sparsekv",
                     {"eval", "--model", kDemo, "--task", "mmlu", "--file", file, "--shots", "0",
                      "--context", "128", "--policy", "dense", "--json", "--state", state});
  };
  const auto first = run(questions("a", "Who?,I,you,he,she,A\n"));
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_EQ(run(questions("moved", "Who?,I,you,he,she,A\n")).code, 0);
  const auto other = run(questions("other", "Who?,I,you,he,she,B\n"));
  EXPECT_EQ(other.code, 1);
  EXPECT_NE(other.err.find("is of another sweep, its file_xxh3"), std::string::npos) << other.err;
}

// A policy may have labels of its own: from the model's own config it is the same, from another
// not.
TEST(Eval, ChannelsFromAnotherConfig) {
  ScratchDir dir;
  const std::string text = Read(kDemo + "/channels.json");
  auto other = nlohmann::json::parse(text);
  for (auto& layer : other["order"]) {
    for (auto& head : layer) std::ranges::reverse(head);
  }
  const std::string mine = Write(dir.path() + "/mine", text);
  const std::string reversed = Write(dir.path() + "/reversed", other.dump());
  const auto run = RunBinary("sparsekv", {"eval",
                                          "--model",
                                          kDemo,
                                          "--task",
                                          "recall",
                                          "--text",
                                          kDemo + "/README.md",
                                          "--context",
                                          "1024",
                                          "--cases",
                                          "1",
                                          "--last",
                                          "4",
                                          "--budget",
                                          "128",
                                          "--channels-as",
                                          "mine=" + mine,
                                          "--channels-as",
                                          "reversed=" + reversed,
                                          "--policy",
                                          "double-sparsity",
                                          "--policy",
                                          "double-sparsity:from=mine",
                                          "--policy",
                                          "double-sparsity:from=reversed",
                                          "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const auto results = Results(run.out)["tasks"][0]["results"];
  EXPECT_EQ(results[1]["captured"], results[2]["captured"]);
  EXPECT_NE(results[1]["captured"], results[3]["captured"]);
  EXPECT_EQ(Results(run.out)["settings"]["channels_as"].size(), 2u);
}

// The recall checkpoint: dense attention and the oracle follow every pointer, a window none.
TEST(Eval, Chase) {
  ScratchDir dir;
  const auto made = RunBinary("sparsekv", {"recall", "--out", dir.path(), "--context", "1024",
                                           "--hops", "8", "--extra-layers", "1"});
  ASSERT_EQ(made.code, 0) << made.err;
  const auto run = RunBinary(
      "sparsekv", {"eval",      "--model",       dir.path(), "--task",   "chase",
                   "--context", "1024",          "--hops",   "8",        "--cases",
                   "2",         "--policy",      "oracle",   "--policy", "double-sparsity",
                   "--policy",  "streaming-llm", "--budget", "1/8",      "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const auto results = Results(run.out)["tasks"][0]["results"];
  EXPECT_EQ(results[0]["score"]["value"], 1.0);
  EXPECT_EQ(results[1]["score"]["value"], 1.0);
  EXPECT_EQ(results[2]["score"]["value"], 1.0);
  EXPECT_LT(results[3]["score"]["value"], 0.5);
}

TEST(Eval, TheReportStandsAlone) {
  ScratchDir dir;
  const std::string page = dir.path() + "/report.html";
  const auto run = RunBinary("sparsekv", With(kSweep, {"--html", page}));
  ASSERT_EQ(run.code, 0) << run.err;
  const std::string html = Read(page);
  EXPECT_EQ(html.find("http"), std::string::npos);  // nothing is loaded from anywhere
  EXPECT_EQ(html.find("<script"), std::string::npos);
  for (const char* part :
       {"<svg", "bytes read per decode step", "accuracy, %", "fingerprint", "double-sparsity",
        "Settings", "20", "change, points", " channels of 64 in "}) {
    EXPECT_NE(html.find(part), std::string::npos) << part;
  }
}

class BadEvalTest : public ::testing::Test {
 protected:
  void Expect(const Arguments& arguments, const std::string& words, int code = 1) {
    const auto run = RunBinary("sparsekv", With({"eval", "--model", kDemo}, arguments));
    EXPECT_EQ(run.code, code) << words;
    EXPECT_EQ(run.out, "") << words;
    EXPECT_NE(run.err.find(words), std::string::npos)
        << "\"" << words << "\" is not in " << run.err;
    if (code == 1) {
      EXPECT_EQ(std::ranges::count(run.err, '\n'), 1) << run.err;
    }
  }
  std::string File(const std::string& name, const std::string& text) {
    return Write(dir_.path() + "/" + name, text);
  }
  ScratchDir dir_;
};

TEST_F(BadEvalTest, Options) {
  Expect({}, "--task: none is given");
  Expect({"--task", "chess"}, "--task: \"chess\" is not one of");
  Expect({"--task", "lines", "--policy", "quest:page=x"}, "page \"x\" is not a whole number");
  Expect({"--task", "lines", "--policy", "best"}, "--policy best: is not one of");
  Expect({"--task", "lines", "--budget", "1/0"}, "--budget: \"1/0\"");
  Expect({"--task", "lines", "--context", "9000"}, "--context: 9000 exceeds the model's 8192");
  Expect({"--task", "lines", "--context", "64"}, "--context: 64 is less than");
  Expect({"--task", "lines", "--cases", "x"}, "--cases", 2);
  Expect({"--task", "perplexity"}, "--text: perplexity needs one");
  Expect({"--task", "chase"}, "the model is not one that `sparsekv recall` made");
  Expect({"--task", "common-words", "--phrasing", "lookup"}, "common-words has no such phrasing");
  Expect({"--task", "lines", "--policy", "quest:page=2", "--channels", "none", "--policy",
          "double-sparsity"},
         "has no channels.json");
  Expect({"--task", "lines", "--policy", "double-sparsity:from=x"},
         "from \"x\" is no name that --channels-as gives");
  Expect({"--task", "lines", "--channels-as", kDemo + "/channels.json"}, "--channels-as: \"");
  Expect({"--task", "lines", "--channels-as", "a=/nowhere"}, "/nowhere");
  Expect({"--task", "lines", "--jobs", "0"}, "--jobs", 2);
}

TEST_F(BadEvalTest, Texts) {
  Expect({"--task", "perplexity", "--text", "/nowhere"}, "/nowhere: cannot be read");
  Expect({"--task", "perplexity", "--text", File("empty", ""), "--last", "64"},
         "/empty has 1 tokens, and a window 8192");
  Expect({"--task", "passkey", "--text", File("blank", "\n\n")}, "/blank has no lines");
}

TEST_F(BadEvalTest, TaskFiles) {
  const auto lines = [&](const std::string& task, const std::string& text,
                         const std::string& words) {
    Expect({"--task", task, "--file", File("cases", text)}, "/cases" + words);
  };
  Expect({"--task", "lines", "--file", "/nowhere"}, "/nowhere: cannot be read");
  lines("kv-retrieval", "", ": has no cases");
  lines("kv-retrieval", "{\"key\"", ":1: is no JSON object");
  lines("kv-retrieval", "[1]\n", ":1: is no JSON object");
  lines("kv-retrieval", std::string(1000, '[') + "\n", ":1: is nested too deep");
  lines("kv-retrieval", "{\"key\": \"a\"}\n", ":1: value is missing");
  lines("kv-retrieval", "{\"key\": \"a\", \"value\": 3}\n", ":1: value is no string");
  lines("kv-retrieval", "{\"key\": \"a\", \"value\": \"b\", \"ordered_kv_records\": [[\"a\"]]}\n",
        ":1: ordered_kv_records is no list of pairs");
  lines("lines", "{\"prompt\": \"x\", \"expected_number\": \"7\"}\n",
        ":1: expected_number is no whole number");
  lines("passkey", "{\"input\": \"x\"}\n", ":1: target is missing");
  lines("longbench", "{\"dataset\": \"news\"}\n", ":1: dataset \"news\" is not in this version");
  lines("longbench", "{\"dataset\": \"qasper\", \"context\": \"c\", \"input\": \"i\"}\n",
        ":1: answers is no list");
  lines("kv-retrieval", "\x1f\x8b\x08\x00 cut off", ": is no whole gzip file");
  Expect({"--task", "mmlu", "--file", dir_.path()}, "has no test/SUBJECT_test.csv");
  std::filesystem::create_directories(dir_.path() + "/test");
  File("test/law_test.csv", "q,a,b,c,d,E\n");
  Expect({"--task", "mmlu", "--file", dir_.path()}, "answer \"E\" is not A, B, C or D");
  File("test/law_test.csv", "\"q,a,b,c,d,A\n");
  Expect({"--task", "mmlu", "--file", dir_.path()}, "a quote is not closed");
}

TEST_F(BadEvalTest, ConfigsAndStates) {
  const Arguments small = {"--task", "lines", "--cases", "1", "--context", "128"};
  Expect(With(small, {"--channels", File("cut", "{\"format\": \"sparsekv-chan")}), "/cut");
  std::string foreign = Read(kDemo + "/channels.json");
  const size_t at = foreign.find("6a93e1bba514e82b");
  ASSERT_NE(at, std::string::npos);
  foreign.replace(at, 16, "0000000000000001");
  Expect(With(small, {"--channels", File("foreign", foreign)}), "fingerprint");
  Expect(With(small, {"--state", File("no", "hello\n")}), "/no: is no state of a sweep");
  const std::string state = dir_.path() + "/state";
  ASSERT_EQ(
      RunBinary("sparsekv", With({"eval", "--model", kDemo}, With(small, {"--state", state}))).code,
      0);
  Expect(With(small, {"--state", state, "--seed", "2"}), "/state: is of another sweep, its seed");
  Write(state, Read(state) + "{\"task\": \"lines\"}\n");  // behind the head and two candidates
  Expect(With(small, {"--state", state}), "/state:4: is no finished case");
}

}  // namespace
}  // namespace sparsekv
