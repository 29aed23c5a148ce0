#include "gpu_worker/checkpoint/safetensors.h"

#include <gtest/gtest.h>
#include <string.h>
#include <sys/stat.h>

#include <string>

#include "gpu_worker/checkpoint/checkpoint_testing.h"

namespace sparsekv {
namespace {

using testing::SafetensorsBytes;
using testing::TempDir;
using testing::WriteFile;

// The message of the error that a file of these bytes gives; "" if it opens.
std::string OpenError(const std::string& bytes) {
  TempDir dir;
  WriteFile(dir.File("x.safetensors"), bytes);
  const auto file = SafetensorsFile::Open(dir.File("x.safetensors"));
  if (file.ok()) return "";
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << file.status();
  const std::string message(file.status().message());
  EXPECT_EQ(message.rfind(dir.path(), 0), 0u) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos);
  return message.substr(dir.File("x.safetensors").size());
}

std::string HeaderError(const std::string& header, size_t data_bytes) {
  return OpenError(SafetensorsBytes(header, std::string(data_bytes, 'x')));
}

#define EXPECT_CONTAINS(text, part) \
  EXPECT_NE((text).find(part), std::string::npos) << "in: " << (text)

TEST(Safetensors, ReadsTensorsWhereTheyLie) {
  TempDir dir;
  WriteFile(dir.File("m"), SafetensorsBytes({{"a", "F32", {2, 3}}, {"b", "BF16", {5}}}));
  const auto file = SafetensorsFile::Open(dir.File("m"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->entries().size(), 2u);
  const SafetensorsEntry* a = (*file)->Find("a");
  const SafetensorsEntry* b = (*file)->Find("b");
  ASSERT_TRUE(a != nullptr && b != nullptr);
  EXPECT_EQ(a->dtype, DType::kF32);
  EXPECT_EQ(a->shape, (std::vector<uint64_t>{2, 3}));
  EXPECT_EQ(a->bytes, 24u);
  EXPECT_EQ(b->dtype, DType::kBF16);
  EXPECT_EQ(b->data, a->data + 24);
  EXPECT_EQ(static_cast<int>(a->data[1]), (7 + 0 + 1) % 61);
  EXPECT_EQ((*file)->Find("c"), nullptr);
}

TEST(Safetensors, CopiesATensorThatIsMisaligned) {
  TempDir dir;
  std::string data(9, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i + 1);
  WriteFile(dir.File("m"),
            SafetensorsBytes(R"({"u":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("a":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})",
                             data));
  const auto file = SafetensorsFile::Open(dir.File("m"));
  ASSERT_TRUE(file.ok()) << file.status();
  const SafetensorsEntry* a = (*file)->Find("a");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a->data) % 4, 0u);
  EXPECT_EQ(memcmp(a->data, data.data() + 1, 8), 0);
  EXPECT_FALSE((*file)->Find("u")->dtype.has_value());
}

TEST(Safetensors, TakesMetadataScalarsAndEmptyTensors) {
  EXPECT_EQ(HeaderError(R"({"__metadata__":{"format":"pt"},)"
                        R"("s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                        R"("e":{"dtype":"F16","shape":[0,7],"data_offsets":[4,4]}})",
                        4),
            "");
  EXPECT_EQ(HeaderError("{}", 0), "");
}

TEST(Safetensors, RefusesFilesThatAreNone) {
  TempDir dir;
  const auto missing = SafetensorsFile::Open(dir.File("none"));
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  const auto directory = SafetensorsFile::Open(dir.path());
  EXPECT_CONTAINS(std::string(directory.status().message()), "not a regular file");
  ASSERT_EQ(mkfifo(dir.File("fifo").c_str(), 0600), 0);
  const auto fifo = SafetensorsFile::Open(dir.File("fifo"));  // and does not wait for a writer
  EXPECT_CONTAINS(std::string(fifo.status().message()), "not a regular file");
}

TEST(Safetensors, FollowsSymbolicLinks) {
  TempDir dir;
  WriteFile(dir.File("blob"), SafetensorsBytes({{"a", "F32", {1}}}));
  std::filesystem::create_symlink("blob", dir.File("link"));
  EXPECT_TRUE(SafetensorsFile::Open(dir.File("link")).ok());
}

TEST(Safetensors, RefusesTruncation) {
  const std::string whole = SafetensorsBytes({{"a", "F32", {4}}, {"b", "F32", {4}}});
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_NE(OpenError(whole.substr(0, size)), "") << size;
  }
  EXPECT_EQ(OpenError(whole), "");
  EXPECT_CONTAINS(OpenError(whole + "x"), "the tensors take 32 bytes, the file has 33");
}

TEST(Safetensors, RefusesAHeaderLongerThanTheFile) {
  for (uint64_t length : {uint64_t{9}, uint64_t{1} << 40, ~uint64_t{0}}) {
    const std::string bytes = std::string(reinterpret_cast<const char*>(&length), 8) + "{}      ";
    EXPECT_CONTAINS(OpenError(bytes), "its header claims " + std::to_string(length));
  }
}

TEST(Safetensors, RefusesOverlapGapAndExtent) {
  const auto two = [](const char* a, const char* b) {
    return std::string(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)") + a +
           R"(},"b":{"dtype":"F32","shape":[2],"data_offsets":)" + b + "}}";
  };
  EXPECT_EQ(HeaderError(two("[0,8]", "[8,16]"), 16), "");
  EXPECT_EQ(HeaderError(two("[8,16]", "[0,8]"), 16), "");
  EXPECT_CONTAINS(HeaderError(two("[0,8]", "[4,12]"), 12), "\"b\": overlaps");
  EXPECT_CONTAINS(HeaderError(two("[0,8]", "[0,8]"), 8), "\"b\": overlaps");
  EXPECT_CONTAINS(HeaderError(two("[0,8]", "[12,20]"), 20), "\"b\": a gap");
  EXPECT_CONTAINS(HeaderError(two("[4,12]", "[12,20]"), 20), "\"a\": a gap");
  EXPECT_CONTAINS(HeaderError(two("[0,8]", "[8,16]"), 12), "past the end");
  EXPECT_CONTAINS(HeaderError(two("[8,0]", "[8,16]"), 16), "wrong way round");
  EXPECT_CONTAINS(HeaderError(two("[0,8]", "[8,12]"), 12), "do not give the 4 bytes");
}

TEST(Safetensors, RefusesAShapeThatOverflows) {
  const std::string huge =
      R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})";
  EXPECT_CONTAINS(HeaderError(huge, 0), "its shape overflows");
  const std::string deep =
      R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}})";
  EXPECT_CONTAINS(HeaderError(deep, 4), "too many dimensions");
}

TEST(Safetensors, RefusesAWrongTable) {
  const auto tensor = [](const std::string& inner) { return "{\"a\":{" + inner + "}}"; };
  const std::string good = R"("dtype":"F32","shape":[1],"data_offsets":[0,4])";
  EXPECT_EQ(HeaderError(tensor(good), 4), "");
  EXPECT_CONTAINS(HeaderError(tensor(R"("dtype":"F33","shape":[1],"data_offsets":[0,4])"), 4),
                  "dtype \"F33\" is not known");
  EXPECT_CONTAINS(HeaderError(tensor(R"("dtype":"F32","data_offsets":[0,4])"), 4), "is missing");
  EXPECT_CONTAINS(HeaderError(tensor(good + R"(,"more":1)"), 4), "unknown key");
  EXPECT_CONTAINS(HeaderError(tensor(good + R"(,"shape":[1])"), 4), "shape twice");
  EXPECT_CONTAINS(HeaderError("{\"a\":{" + good + "},\"a\":{" + good + "}}", 4), "\"a\" twice");
  EXPECT_CONTAINS(HeaderError(tensor(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), 4),
                  "not a table of tensors");
  EXPECT_CONTAINS(HeaderError(tensor(R"("dtype":"F32","shape":[1.5],"data_offsets":[0,4])"), 4),
                  "not a table of tensors");
  EXPECT_CONTAINS(HeaderError(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4])"), 4),
                  "not a pair");
  EXPECT_CONTAINS(HeaderError(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,8])"), 4),
                  "not a table of tensors");
  EXPECT_CONTAINS(HeaderError(R"({"__metadata__":{"x":{}}})", 0), "not a table of tensors");
}

TEST(Safetensors, RefusesWhatIsNotJson) {
  EXPECT_CONTAINS(HeaderError("{\"a\":", 0), "not valid JSON");
  EXPECT_CONTAINS(HeaderError("[]", 0), "does not begin with '{'");
  EXPECT_CONTAINS(HeaderError("{} x", 0), "not valid JSON");
  EXPECT_CONTAINS(OpenError(SafetensorsBytes(std::string("{}\0garbage", 10), "")),
                  "not valid JSON");
  EXPECT_CONTAINS(HeaderError("{\"\xff\xfe\":{}}", 0), "not valid JSON");
  EXPECT_CONTAINS(HeaderError("{\"" + std::string(2000, 'n') + "\":{}}", 0), "name is too long");
}

// Whatever a header says, what is said of it is one line.
TEST(Safetensors, NamesWithControlCharacters) {
  EXPECT_EQ(HeaderError(R"({"a\n\u007fb":{"d\ttype":"F32"}})", 0),
            R"(: tensor "a??b": unknown key "d?type")");
  EXPECT_EQ(HeaderError(R"({"a\nb":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 0),
            R"(: tensor "a?b": data_offsets reach past the end of the file)");
}

TEST(Safetensors, RefusesDepthWithoutUsingTheStack) {
  EXPECT_NE(HeaderError("{\"a\":" + std::string(5'000'000, '['), 0), "");
  EXPECT_NE(HeaderError("{\"a\":{\"shape\":" + std::string(5'000'000, '['), 0), "");
  std::string nested;
  for (int i = 0; i < 1'000'000; ++i) nested += "{\"a\":";
  EXPECT_NE(HeaderError(nested, 0), "");
}

}  // namespace
}  // namespace sparsekv
