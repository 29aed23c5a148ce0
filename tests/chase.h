#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/server_process.h"

namespace sparsekv::testing {

// A pointer chase: what is asked, and the tokens that answer it.
struct Chase {
  std::vector<uint32_t> prompt, expected;
};

// Runs `sparsekv recall` into a directory, with further arguments, and reads the chase that it
// made.
inline Chase MakeChase(const std::string& dir, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"recall", "--out", dir});
  const auto made = RunBinary("sparsekv", arguments);
  EXPECT_EQ(made.code, 0) << made.err;
  const auto json = nlohmann::json::parse(std::ifstream(dir + "/chase.json"));
  return {json["prompt_token_ids"], json["expected_token_ids"]};
}

}  // namespace sparsekv::testing
