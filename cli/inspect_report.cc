// An inspection's report as text.
#include <cstdio>
#include <string>
#include <string_view>

#include "base/concat.h"
#include "cli/inspect.h"

namespace sparsekv {

namespace {

using nlohmann::ordered_json;

// 12,345
std::string Grouped(uint64_t number) {
  const std::string digits = std::to_string(number);
  std::string grouped;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) grouped += ',';
    grouped += digits[i];
  }
  return grouped;
}

std::string Bytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
  char text[40];
  std::snprintf(text, sizeof text, value < 10 && unit > 0 ? "%.1f %s" : "%.0f %s", value,
                kUnits[unit]);
  return text;
}

std::string Number(const ordered_json& value) { return Grouped(value.get<uint64_t>()); }

// A value that config.json holds may be any text: one line of it, without control characters.
std::string Text(const ordered_json& value) {
  std::string text = value.is_string() ? value.get<std::string>() : value.dump();
  std::erase_if(text, [](unsigned char c) { return c < 0x20 || c == 0x7f; });
  return text.substr(0, 500);
}

class Page {
 public:
  void Line(const char* name, const std::string& text) {
    char head[40];
    std::snprintf(head, sizeof head, "%-12s ", name);
    page_ += Concat(head, text, "\n");
  }
  void Raw(const std::string& text) { page_ += text; }
  std::string Take() { return std::move(page_); }

 private:
  std::string page_;
};

void AddModel(const ordered_json& report, Page* page) {
  page->Line("model", Text(report["model"]));
  if (report.contains("family")) {
    const std::string type =
        report.contains("model_type") ? Concat(" (", Text(report["model_type"]), ")") : "";
    page->Line("family", Text(report["family"]) + type);
  }
  if (!report.contains("layers")) return;
  page->Line("size", Concat(Number(report["layers"]), " layers of ", Number(report["hidden_size"]),
                            ", ", Number(report["heads"]), " heads and ",
                            Number(report["kv_heads"]), " KV heads of ", Number(report["head_dim"]),
                            ", MLP ", Number(report["intermediate_size"]), ", vocabulary ",
                            Number(report["vocab_size"])));
  const ordered_json& rope = report["rope"];
  std::string scaling = Text(rope["scaling"]);
  if (rope.contains("factor")) scaling += Concat(", factor ", rope["factor"].get<double>());
  if (rope.contains("original_context")) scaling += " over " + Number(rope["original_context"]);
  page->Line("context", Concat(Number(report["context"]), " tokens; rope theta ",
                               rope["theta"].get<double>(), ", scaling ", scaling));
  if (report.contains("window")) {
    page->Line("window", Concat(Number(report["window"]["tokens"]), " tokens, in ",
                                Number(report["window"]["layers"]), " layers"));
  }
  if (report.contains("experts")) {
    const ordered_json& experts = report["experts"];
    page->Line("experts", Concat(Number(experts["per_token"]), " of ", Number(experts["count"]),
                                 " a token, MLP ", Number(experts["intermediate_size"])));
  }
}

void AddWeights(const ordered_json& report, Page* page) {
  std::string weights;
  const auto add = [&](const std::string& part) {
    if (!weights.empty()) weights += ", ";
    weights += part;
  };
  if (report.contains("memory")) add(Bytes(report["memory"]["weight_bytes"].get<uint64_t>()));
  if (report.contains("stated_type")) add("type " + Text(report["stated_type"]));
  if (report.contains("quantisation")) add("quantised as " + Text(report["quantisation"]));
  if (report.contains("row_type")) add("token rows in " + Text(report["row_type"]));
  if (!weights.empty()) page->Line("weights", weights);
}

void AddText(const ordered_json& report, Page* page) {
  const ordered_json& tokenizer = report["tokenizer"];
  std::string text = tokenizer["file"].is_null() ? "none" : Text(tokenizer["file"]);
  if (tokenizer.contains("ids")) {
    text += Concat(", ", Number(tokenizer["ids"]), " ids, BOS ",
                   tokenizer["bos_token_id"].is_null() ? "none" : Text(tokenizer["bos_token_id"]));
  }
  if (report.contains("eos_token_ids")) text += ", EOS " + Text(report["eos_token_ids"]);
  page->Line("tokenizer", text);
  const ordered_json& chat = report["chat"];
  page->Line("chat", chat["template"].get<bool>() ? "has a template" : "no: " + Text(chat["why"]));
}

void AddChannels(const ordered_json& report, Page* page) {
  if (!report.contains("channel_config")) return;
  const ordered_json& channels = report["channel_config"];
  if (channels.is_null()) {
    page->Line("channels", "none: dense attention only; `sparsekv calibrate` makes them");
    return;
  }
  page->Line("channels",
             Concat(Number(channels["channels"]), " of ", Number(report["head_dim"]),
                    " are labels in ", Text(channels["label_format"]), ", criterion ",
                    Text(channels["criterion"]), ", pooling ", Text(channels["pooling"]),
                    ", calibrated on ", Number(channels["calibration_tokens"]), " tokens"));
  if (!channels.contains("recall")) {
    page->Line("", "the file has no figures of what a budget loses");
    return;
  }
  const ordered_json& recall = channels["recall"];
  char text[160];
  std::snprintf(text, sizeof text,
                "a budget of 1/%u keeps %.3f of the attention at %u tokens (worst head %.3f)",
                recall["budget_denominator"].get<uint32_t>(), recall["mean"].get<double>(),
                recall["context"].get<uint32_t>(), recall["least"].get<double>());
  page->Line("", text);
}

void AddMemory(const ordered_json& memory, Page* page) {
  const std::string labels =
      memory.contains("label_bytes_per_1000_tokens")
          ? Concat(", ", Bytes(memory["label_bytes_per_1000_tokens"].get<uint64_t>()),
                   " of labels on the device")
          : "";
  page->Line("1,000 tokens", Concat(Bytes(memory["row_bytes_per_1000_tokens"].get<uint64_t>()),
                                    " of rows in host memory", labels));
  const ordered_json& fits = memory["sequences_that_fit"];
  if (fits.empty()) return;
  page->Raw(
      "\nsequences that fit at once (64: a full batch; with a GPU, as far as host memory has the "
      "rows)\n");
  std::string line = "  context              ";
  const auto cell = [&](const std::string& text) {
    char padded[40];
    std::snprintf(padded, sizeof padded, "%12s", text.c_str());
    line += padded;
  };
  const auto end = [&] {
    page->Raw(line + "\n");
    line.clear();
  };
  for (const auto& fit : fits) cell(Grouped(fit["context"].get<uint64_t>()));
  end();
  line = "  rows in host memory  ";
  for (const auto& fit : fits) cell(Bytes(fit["host_row_bytes"].get<uint64_t>()));
  end();
  constexpr const char* kPlaces[][2] = {{"this_machine_cpu", "  this machine, cpu    "},
                                        {"gpu_24_gb", "  GPU of 24 GB         "},
                                        {"gpu_48_gb", "  GPU of 48 GB         "},
                                        {"gpu_80_gb", "  GPU of 80 GB         "}};
  const bool cuda = !memory.contains("not_on_cuda");
  for (const auto& [key, name] : kPlaces) {
    if (!cuda && std::string_view(key).starts_with("gpu")) continue;
    line = name;
    for (const auto& fit : fits) cell(fit[key].is_null() ? "?" : Number(fit[key]));
    end();
  }
  if (!cuda) page->Raw(Concat("  on a GPU             no: ", Text(memory["not_on_cuda"]), "\n"));
}

}  // namespace

std::string Shown(const ordered_json& report) {
  Page page;
  AddModel(report, &page);
  AddWeights(report, &page);
  AddText(report, &page);
  AddChannels(report, &page);
  if (report.contains("memory")) AddMemory(report["memory"], &page);
  if (!report["refused"].is_null())
    page.Raw("\nserve would refuse it: " + Text(report["refused"]) + "\n");
  return page.Take();
}

}  // namespace sparsekv
