// `sparsekv tokenize`: bytes to ids and back with a checkpoint's own tokenizer, in this process.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "coordinator/tokenizer/tokenizer.h"

namespace sparsekv {

namespace {

struct TokenizeOptions {
  std::string model_dir;
  bool no_bos = false;
  bool decode = false;
  bool json_lines = false;
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

absl::StatusOr<std::vector<uint32_t>> Encode(const Tokenizer& tokenizer, std::string_view text,
                                             const TokenizeOptions& options) {
  return tokenizer.Encode(text, options.no_bos ? Tokenizer::Bos::kNone : Tokenizer::Bos::kRule);
}

// Each line is a JSON string, or with --decode ids; each answer is a line of JSON.
absl::Status RunLines(const Tokenizer& tokenizer, const std::string& input,
                      const TokenizeOptions& options) {
  std::istringstream lines(input);
  size_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    const std::string at = absl::StrCat("stdin: line ", ++number);
    if (options.decode) {
      auto ids = ReadIds(line, tokenizer.vocab_size());
      if (!ids.ok()) return absl::InvalidArgumentError(absl::StrCat(at, ids.status().message()));
      const nlohmann::json text = tokenizer.Decode(*ids, /*skip_special=*/true);
      std::cout << text.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace) << "\n";
      continue;
    }
    const auto text = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!text.is_string())
      return absl::InvalidArgumentError(absl::StrCat(at, " is no JSON string"));
    auto ids = Encode(tokenizer, text.get_ref<const std::string&>(), options);
    if (!ids.ok()) return ids.status();
    std::cout << nlohmann::json{{"ids", *ids}}.dump() << "\n";
  }
  return absl::OkStatus();
}

absl::Status RunTokenize(const TokenizeOptions& options) {
  auto tokenizer = Tokenizer::Load(options.model_dir);
  if (!tokenizer.ok()) return tokenizer.status();
  auto input = ReadInput("-");
  if (!input.ok()) return input.status();
  if (options.json_lines) return RunLines(**tokenizer, *input, options);
  if (options.decode) {
    auto ids = ReadIds(*std::move(input), (*tokenizer)->vocab_size());
    if (!ids.ok()) return ids.status();
    const std::string bytes = (*tokenizer)->Decode(*ids, /*skip_special=*/true);
    std::fwrite(bytes.data(), 1, bytes.size(), stdout);
    return absl::OkStatus();
  }
  auto ids = Encode(**tokenizer, *input, options);
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
  sub->add_flag(
      "--json-lines", options->json_lines,
      "each line of stdin by itself: a JSON string, or with --decode ids -> a JSON string");
  sub->callback([=] { *command = [=] { return RunTokenize(*options); }; });
}

}  // namespace sparsekv
