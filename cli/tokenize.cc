// `sparsekv tokenize`: bytes to ids and back with a checkpoint's own tokenizer, in this process.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "coordinator/tokenizer/tokenizer.h"

namespace sparsekv {

namespace {

struct TokenizeOptions {
  std::string model_dir;
  bool no_bos = false;
  bool decode = false;
};

// Ids as "1,2,3", "1 2 3", "[1,2,3]" or {"ids":[...]}, which is what encoding prints.
absl::StatusOr<std::vector<uint32_t>> ReadIds(std::string text, uint32_t vocab_size) {
  const size_t bracket = text.find('[');
  if (bracket != std::string::npos) text = text.substr(bracket + 1, text.rfind(']') - bracket - 1);
  std::vector<uint32_t> ids;
  for (size_t i = 0; i < text.size();) {
    if (text[i] == ',' || std::isspace(static_cast<unsigned char>(text[i]))) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < text.size() && std::isdigit(static_cast<unsigned char>(text[end]))) ++end;
    const std::string digits = text.substr(i, end - i);
    if (digits.empty() || digits.size() > 9) {
      return absl::InvalidArgumentError(
          absl::StrCat("stdin: \"", text.substr(i, 20), "\" is not an id"));
    }
    ids.push_back(static_cast<uint32_t>(std::stoul(digits)));
    if (ids.back() >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("stdin: id ", ids.back(), " is not below the vocabulary size ", vocab_size));
    }
    i = end;
  }
  return ids;
}

absl::Status RunTokenize(const TokenizeOptions& options) {
  auto tokenizer = Tokenizer::Load(options.model_dir);
  if (!tokenizer.ok()) return tokenizer.status();
  auto input = ReadInput("-");
  if (!input.ok()) return input.status();
  if (options.decode) {
    auto ids = ReadIds(*std::move(input), (*tokenizer)->vocab_size());
    if (!ids.ok()) return ids.status();
    const std::string bytes = (*tokenizer)->Decode(*ids, /*skip_special=*/true);
    std::fwrite(bytes.data(), 1, bytes.size(), stdout);
    return absl::OkStatus();
  }
  auto ids =
      (*tokenizer)->Encode(*input, options.no_bos ? Tokenizer::Bos::kNone : Tokenizer::Bos::kRule);
  if (!ids.ok()) return ids.status();
  std::cout << nlohmann::json{{"ids", *ids}}.dump() << "\n";
  return absl::OkStatus();
}

}  // namespace

void AddTokenize(CLI::App& app, Command* command) {
  CLI::App* sub = app.add_subcommand("tokenize", "stdin, byte for byte -> {\"ids\":[...]}");
  auto options = std::make_shared<TokenizeOptions>();
  sub->add_option("--model", options->model_dir, "checkpoint directory")->required();
  sub->add_flag("--no-bos", options->no_bos, "without the tokenizer's own BOS rule");
  sub->add_flag("--decode", options->decode, "ids on stdin -> bytes, no newline added");
  sub->callback([=] { *command = [=] { return RunTokenize(*options); }; });
}

}  // namespace sparsekv
