// The rules of the house as a test: which folder may include which, how long files, functions and
// lines may be, and that every test and source file is built.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace sparsekv {
namespace {

namespace fs = std::filesystem;

const fs::path kRoot = SPARSEKV_SOURCE_DIR;

struct SourceFile {
  std::string path;  // from the root
  std::vector<std::string> lines;
};

std::vector<SourceFile> AllSources() {
  const std::set<std::string> folders = {"base",        "kernels", "kv_store", "gpu_worker",
                                         "coordinator", "cli",     "tests",    "proto"};
  const std::set<std::string> endings = {".cc", ".h", ".cu", ".cuh", ".proto"};
  std::vector<SourceFile> files;
  for (const std::string& folder : folders) {
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / folder)) {
      if (!endings.contains(entry.path().extension())) continue;
      SourceFile file{fs::relative(entry.path(), kRoot).string(), {}};
      std::ifstream in(entry.path());
      for (std::string line; std::getline(in, line);) file.lines.push_back(line);
      files.push_back(std::move(file));
    }
  }
  return files;
}

std::string TopFolder(const std::string& path) { return path.substr(0, path.find('/')); }

// Empty when `from` may include `target`, else why not. Layers: README.md.
std::string Forbidden(const std::string& from, const std::string& target) {
  static const std::map<std::string, std::set<std::string>> allowed = {
      {"base", {}},
      {"kernels", {"base"}},
      {"kv_store", {"base", "sparsekv"}},
      {"gpu_worker", {"base", "sparsekv", "kernels"}},
      {"coordinator", {"base", "sparsekv"}},
      {"cli", {"base", "sparsekv", "kernels", "kv_store", "gpu_worker", "coordinator"}},
      {"tests", {"base", "sparsekv", "kernels", "kv_store", "gpu_worker", "coordinator"}},
  };
  const std::string folder = TopFolder(from), to = TopFolder(target);
  if (folder == to || allowed.at(folder).contains(to)) return "";
  const bool store_client = target == "kv_store/client.h";
  if (store_client && (folder == "gpu_worker" || folder == "coordinator")) return "";
  return folder + " may not include " + target;
}

TEST(Structure, IncludesGoOneWay) {
  const std::regex include("^\\s*#include \"([^\"]+)\"");
  const std::set<std::string> ours = {"base",        "kernels", "kv_store", "gpu_worker",
                                      "coordinator", "cli",     "tests",    "sparsekv"};
  for (const SourceFile& file : AllSources()) {
    if (TopFolder(file.path) == "proto") continue;
    for (const std::string& line : file.lines) {
      std::smatch match;
      if (!std::regex_search(line, match, include) || !ours.contains(TopFolder(match[1]))) continue;
      EXPECT_EQ(Forbidden(file.path, match[1]), "") << file.path;
    }
  }
}

TEST(Structure, TheRuleItselfCanFail) {
  EXPECT_NE(Forbidden("coordinator/a.cc", "gpu_worker/model.h"), "");
  EXPECT_NE(Forbidden("gpu_worker/a.cc", "kv_store/block_table.h"), "");
  EXPECT_NE(Forbidden("base/a.h", "kernels/rope.h"), "");
  EXPECT_EQ(Forbidden("gpu_worker/a.cc", "kv_store/client.h"), "");
}

TEST(Structure, FilesAndLinesAreShort) {
  for (const SourceFile& file : AllSources()) {
    EXPECT_LE(file.lines.size(), 600u) << file.path;
    for (size_t i = 0; i < file.lines.size(); ++i) {
      size_t columns = 0;  // characters, not bytes
      for (char c : file.lines[i]) columns += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
      EXPECT_LE(columns, 100u) << file.path << ":" << i + 1;
    }
  }
}

// A function begins where a line without indentation holds a "(" and a block opens before the next
// ";", and ends with the first "}" without indentation. Kernels may be longer: their stages are
// titled.
TEST(Structure, FunctionsAreShort) {
  for (const SourceFile& file : AllSources()) {
    if (TopFolder(file.path) == "proto") continue;
    const size_t most = file.path.starts_with("kernels/") ? 150 : 70;
    size_t begin = 0;
    bool open = false;
    for (size_t i = 0; i < file.lines.size(); ++i) {
      const std::string& line = file.lines[i];
      if (line.empty() || line[0] == '#' || line[0] == '/' || line[0] == ' ') continue;
      if (line[0] == '}') {
        if (open) {
          EXPECT_LE(i - begin, most) << file.path << ":" << begin + 1;
        }
        open = false;
      } else if (line.find('(') != std::string::npos && line.back() != '}' &&
                 !line.starts_with("class ") && !line.starts_with("struct ") &&
                 !line.starts_with("namespace")) {
        begin = i;
        open = true;
      }
    }
  }
}

TEST(Structure, HeadersHaveOneGuardAndNothingIsLeftUndone) {
  for (const SourceFile& file : AllSources()) {
    std::ostringstream text;
    for (const std::string& line : file.lines) text << line << "\n";
    const bool header = file.path.ends_with(".h") && !file.path.ends_with("-inl.h");
    if (header) {
      EXPECT_NE(text.str().find("#pragma once"), std::string::npos) << file.path;
    }
    for (const char* word : {"TO"
                             "DO",
                             "FIX"
                             "ME",
                             "DISABLED"
                             "_"}) {
      EXPECT_EQ(text.str().find(word), std::string::npos) << file.path << ": " << word;
    }
  }
}

// A kernel that does not wait for those before it says so of none of them
// (kernels/cuda/begin_kernel.cuh).
TEST(Structure, EveryCudaKernelBeginsAsAllDo) {
  size_t kernels = 0;
  for (const SourceFile& file : AllSources()) {
    if (!file.path.starts_with("kernels/cuda/")) continue;
    size_t here = 0, begun = 0, perhaps = 0, ended = 0;
    for (const std::string& line : file.lines) {
      here += line.find("__global__") != std::string::npos;
      const bool begins = line.find("BeginKernel();") != std::string::npos;
      begun += begins;
      perhaps += begins && line.find("if (") != std::string::npos;
      ended += line.find("EndKernel();") != std::string::npos;
    }
    EXPECT_EQ(here, begun) << file.path;
    EXPECT_EQ(perhaps, ended) << file.path;  // who does not wait at first waits at last
    kernels += here;
  }
  EXPECT_GT(kernels, 0u);
}

TEST(Structure, EverySourceIsBuilt) {
  std::vector<std::string> lists;
  for (const auto& entry : fs::recursive_directory_iterator(kRoot)) {
    if (entry.path().filename() != "CMakeLists.txt") continue;
    std::ifstream file(entry.path());
    std::ostringstream text;
    text << file.rdbuf();
    lists.push_back(text.str());
  }
  for (const SourceFile& file : AllSources()) {
    if (!file.path.ends_with(".cc")) continue;
    const fs::path path = kRoot / file.path;
    bool found = false;
    for (const std::string& list : lists) {
      found = found || list.find(path.filename().string()) != std::string::npos;
    }
    EXPECT_TRUE(found) << file.path << " is in no CMakeLists.txt";
  }
}

}  // namespace
}  // namespace sparsekv
