#include "cli/calibrate/calibration_report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/ids.h"
#include "cli/plot.h"

namespace sparsekv {

namespace {

size_t Bytes(const LabelChoice& choice) { return LabelBytes(choice.format, choice.channels); }

// The choices of one criterion in one format, by rising bytes. The first choice is the default as
// it is used, and comes again among the rest.
std::vector<size_t> Series(const RecallMeter& meter, size_t order, LabelFormat format) {
  std::vector<size_t> series;
  const auto& choices = meter.options().choices;
  for (size_t i = 1; i < choices.size(); ++i) {
    if (choices[i].order == order && choices[i].format == format) series.push_back(i);
  }
  return series;
}

// How much more recall a choice has than another, query by query.
struct Difference {
  double mean = 0, standard_error = 0;
};

Difference Compare(const RecallMeter& meter, size_t a, size_t b, size_t budget) {
  const auto x = meter.PerQuery(a, budget), y = meter.PerQuery(b, budget);
  const auto n = static_cast<double>(x.size());
  Difference d;
  for (size_t i = 0; i < x.size(); ++i) d.mean += (x[i] - y[i]) / n;
  for (size_t i = 0; i < x.size(); ++i) {
    d.standard_error += (x[i] - y[i] - d.mean) * (x[i] - y[i] - d.mean);
  }
  d.standard_error = n > 1 ? std::sqrt(d.standard_error / (n - 1) / n) : 0;
  return d;
}

// The same channel count and format with the chosen criterion.
size_t ChosenLike(const RecallMeter& meter, const LabelChoice& choice) {
  const auto& choices = meter.options().choices;
  for (size_t i = 1; i < choices.size(); ++i) {
    const LabelChoice& c = choices[i];
    if (c.order == 0 && c.channels == choice.channels && c.format == choice.format) return i;
  }
  return 0;
}

std::string Subject(const Calibration& c) {
  return absl::StrCat(c.model, ", held-out text: contexts of ", c.held_out_context, " tokens, ",
                      c.meter->queries(), " queries with at least half of it before them");
}

std::string Gap(const Calibration& c, size_t budget) {
  const RecallMeter& meter = *c.meter;
  std::string text;
  for (size_t own : Series(meter, 0, LabelFormat::kBf16)) {
    const LabelChoice& choice = meter.options().choices[own];
    size_t best = own;
    for (size_t order = 0; order < c.criteria.size(); ++order) {
      for (size_t i : Series(meter, order, choice.format)) {
        if (meter.options().choices[i].channels != choice.channels) continue;
        if (meter.Mean(i, budget) > meter.Mean(best, budget)) best = i;
      }
    }
    const Difference d = Compare(meter, best, own, budget);
    absl::StrAppendFormat(&text, "  bf16, %d bytes: best %s, %.4f (%+.4f +- %.4f to %s)\n",
                          Bytes(choice), Name(c.criteria[meter.options().choices[best].order]),
                          meter.Mean(best, budget), d.mean, d.standard_error, Name(c.criteria[0]));
  }
  return text;
}

}  // namespace

std::string CalibrationTable(const Calibration& c) {
  const RecallMeter& meter = *c.meter;
  std::string text = absl::StrCat("Recall of attention mass. ", Subject(c), "\n");
  for (size_t budget = 0; budget < meter.options().denominators.size(); ++budget) {
    absl::StrAppendFormat(&text, "\nBudget 1/%d. True top-k: %.4f; always-set alone: %.4f\n",
                          meter.options().denominators[budget], meter.Oracle(budget),
                          meter.AlwaysSet(budget));
    std::string formats = absl::StrFormat("%-18s", "criterion"), bytes = formats;
    bytes = absl::StrFormat("%-18s", "bytes of a label");
    for (LabelFormat format : kLabelFormats) {
      for (size_t i : Series(meter, 0, format)) {
        absl::StrAppendFormat(&formats, " %7s", std::string(Name(format)));
        absl::StrAppendFormat(&bytes, " %7d", Bytes(meter.options().choices[i]));
      }
    }
    absl::StrAppend(&text, formats, "\n", bytes, "\n");
    for (size_t order = 0; order < c.criteria.size(); ++order) {
      absl::StrAppendFormat(&text, "%-18s", Name(c.criteria[order]));
      for (LabelFormat format : kLabelFormats) {
        for (size_t i : Series(meter, order, format)) {
          absl::StrAppendFormat(&text, " %7.4f", meter.Mean(i, budget));
        }
      }
      text += "\n";
    }
    text += Gap(c, budget);
  }
  return text;
}

std::string CalibrationJson(const Calibration& c) {
  const RecallMeter& meter = *c.meter;
  const auto& options = meter.options();
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (size_t i = 1; i < options.choices.size(); ++i) {
    const LabelChoice& choice = options.choices[i];
    nlohmann::ordered_json recall = nlohmann::ordered_json::object();
    for (size_t b = 0; b < options.denominators.size(); ++b) {
      const Difference d = Compare(meter, i, ChosenLike(meter, choice), b);
      recall["1/" + std::to_string(options.denominators[b])] = {
          {"mass", meter.Mean(i, b)},
          {"over_chosen", d.mean},
          {"standard_error", d.standard_error}};
    }
    rows.push_back({{"criterion", Name(c.criteria[choice.order])},
                    {"label_format", Name(choice.format)},
                    {"channels", choice.channels},
                    {"bytes", Bytes(choice)},
                    {"recall", std::move(recall)}});
  }
  nlohmann::ordered_json bounds = nlohmann::ordered_json::object();
  for (size_t b = 0; b < options.denominators.size(); ++b) {
    bounds["1/" + std::to_string(options.denominators[b])] = {{"true_top_k", meter.Oracle(b)},
                                                              {"always_set", meter.AlwaysSet(b)}};
  }
  const nlohmann::ordered_json report = {
      {"model", c.model},
      {"fingerprint", HexId(c.fingerprint)},
      {"text", {{"xxh3", HexId(c.channels.text.xxh3)}, {"tokens", c.channels.text.tokens}}},
      {"context", c.channels.context},
      {"held_out",
       {{"tokens", c.held_out_tokens},
        {"context", c.held_out_context},
        {"queries", meter.queries()}}},
      {"pooling", Name(options.pooling)},
      {"chosen", c.channels.criterion},
      {"bounds", std::move(bounds)},
      {"rows", std::move(rows)}};
  return report.dump(1) + "\n";
}

std::string CalibrationSvg(const Calibration& c) {
  const RecallMeter& meter = *c.meter;
  std::string body;
  double y = 48;
  for (size_t budget = 0; budget < meter.options().denominators.size(); ++budget) {
    for (LabelFormat format : kLabelFormats) {
      Plot plot = {
          .title = absl::StrFormat("Budget 1/%d, %s labels", meter.options().denominators[budget],
                                   std::string(Name(format))),
          .x_title = "bytes of a label (one token and KV head, scales included)",
          .y_title = "recall of attention mass",
          .x_low = 1e9,
          .x_high = 0,
          .reference = meter.Oracle(budget),
          .reference_name = "true top-k"};
      for (size_t order = 0; order < c.criteria.size(); ++order) {
        PlotLine line = {.name = Name(c.criteria[order])};
        for (size_t i : Series(meter, order, format)) {
          const auto bytes = static_cast<double>(Bytes(meter.options().choices[i]));
          const double recall = meter.Mean(i, budget);
          line.points.push_back({bytes, recall, recall, recall});
        }
        if (!line.points.empty()) plot.lines.push_back(std::move(line));
      }
      if (plot.lines.empty()) continue;
      for (const LabelChoice& choice : meter.options().choices) {  // one axis for all formats
        plot.x_low = std::min(plot.x_low, static_cast<double>(Bytes(choice)));
        plot.x_high = std::max(plot.x_high, static_cast<double>(Bytes(choice)));
      }
      absl::StrAppendFormat(&body, "<g transform='translate(0 %.0f)'>%s</g>", y, plot.ToSvg());
      y += 410;
    }
  }
  return absl::StrFormat(
      "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 880 %.0f' width='880' height='%.0f' "
      "font-family='sans-serif'><rect width='880' height='%.0f' fill='#fff'/>"
      "<text x='8' y='22' font-size='16' font-weight='bold'>Label channels by criterion</text>"
      "<text x='8' y='40' font-size='11'>%s</text>%s</svg>\n",
      y, y, y, Escape(Subject(c)), body);
}

}  // namespace sparsekv
