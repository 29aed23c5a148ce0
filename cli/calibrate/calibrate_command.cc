// `sparsekv calibrate`: which channels of K tell most of a score, per layer and KV head, measured
// on a text with dense attention; and how much attention labels of them find, on other text.
#include <algorithm>
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "cli/calibrate/calibrate.h"
#include "cli/calibrate/calibration_report.h"
#include "cli/commands.h"
#include "gpu_worker/checkpoint/json_file.h"

namespace sparsekv {

namespace {

struct Arguments {
  CalibrateOptions options;
  std::string out;
  std::vector<std::string> reports;
  std::string criterion = "qk-lift";
  std::string pooling{Name(Pooling::kMaxNormalised)};
  std::string label_format{Name(CalibrateOptions{}.label_format)};
};

absl::Status Check(const Arguments& a) {
  const auto refuse = [](const std::string& what) { return absl::InvalidArgumentError(what); };
  if (a.out.empty() && a.reports.empty()) {
    return refuse("--out and --report are missing: nothing would be written");
  }
  for (const std::string& report : a.reports) {
    if (report != "-" && !report.ends_with(".svg") && !report.ends_with(".json")) {
      return refuse(absl::StrCat("--report: ", report, " is neither FILE.svg, FILE.json nor -"));
    }
  }
  if (!a.reports.empty() && a.options.held_out == 0) {
    return refuse("--report needs --held-out above 0");
  }
  return absl::OkStatus();
}

absl::Status Write(const Arguments& a, const Calibration& calibration) {
  if (calibration.meter) {
    const ChannelConfig& channels = calibration.channels;
    spdlog::info(
        "{} channels by {} in {}, {} bytes a label: recall of attention mass {:.4f} at 1/{}, true "
        "top-k {:.4f}",
        channels.channels, channels.criterion, Name(channels.label_format),
        LabelBytes(channels.label_format, channels.channels), calibration.meter->Mean(0, 0),
        calibration.meter->options().denominators[0], calibration.meter->Oracle(0));
  }
  if (!a.out.empty()) {
    absl::Status status = calibration.channels.Save(a.out, calibration.fingerprint);
    if (!status.ok()) return status;
  }
  for (const std::string& report : a.reports) {
    if (report == "-") {
      std::fputs(CalibrationTable(calibration).c_str(), stdout);
      continue;
    }
    absl::Status status =
        WriteFileAtomically(report, report.ends_with(".svg") ? CalibrationSvg(calibration)
                                                             : CalibrationJson(calibration));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status RunCalibrate(Arguments a) {
  if (absl::Status status = Check(a); !status.ok()) return status;
  a.options.criterion = *ParseCriterion(a.criterion);
  a.options.pooling = *ParsePooling(a.pooling);
  a.options.label_format = *ParseLabelFormat(a.label_format);
  a.options.compare = !a.reports.empty();
  const auto calibration = Calibrate(a.options);
  return calibration.ok() ? Write(a, *calibration) : calibration.status();
}

}  // namespace

void AddCalibrate(CLI::App& app, Command* command) {
  CLI::App* sub = app.add_subcommand("calibrate", "choose label channels on a text");
  auto a = std::make_shared<Arguments>();
  CalibrateOptions& o = a->options;
  sub->add_option("--model", o.model_dir, "checkpoint directory")->required();
  sub->add_option("--text", o.text_file, "text like the deployment's, - = stdin")->required();
  sub->add_option("--out", a->out, "channel config to write");
  sub->add_option("--report", a->reports,
                  "compare every criterion and label format: FILE.svg, FILE.json, - = a table");
  sub->add_option("--criterion", a->criterion,
                  "what channels are chosen by: gpu_worker/calibration_criterion.h")
      ->check([](const std::string& name) {
        return ParseCriterion(name) ? "" : "\"" + name + "\" is not a criterion";
      })
      ->capture_default_str();
  sub->add_option("--pooling", a->pooling, "how the group's query heads become one score")
      ->check(CLI::IsMember({"max-normalised", "sum", "softmax-mass"}))
      ->capture_default_str();
  sub->add_option("--label-format", a->label_format, "how the label cache will hold them")
      ->check(CLI::IsMember({"bf16", "int8", "int4", "int2"}))
      ->capture_default_str();
  sub->add_option("--label-channels", o.channels,
                  "per KV head; default head_dim / 4 codes, head_dim / 16 of bf16; at least 2");
  sub->add_option("--context,--window", o.context,
                  "tokens of one context; default the model's context");
  sub->add_option("--max-tokens", o.max_tokens, "of the text")
      ->check(CLI::Range(1u, 1u << 30))
      ->capture_default_str();
  sub->add_option("--held-out", o.held_out,
                  "share at the text's end that recall is measured on; 0: none is")
      ->check(CLI::Range(0.0, 0.9))
      ->capture_default_str();
  sub->add_option("--queries", o.queries, "of a held-out context that recall is measured for")
      ->check(CLI::Range(1u, 1u << 16))
      ->capture_default_str();
  sub->add_option("--threads", o.threads, "0 = every core")->check(CLI::Range(0u, 1024u));
  sub->callback([=] { *command = [=] { return RunCalibrate(*a); }; });
}

}  // namespace sparsekv
