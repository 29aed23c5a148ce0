#include <algorithm>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/eval/report/report.h"
#include "cli/plot.h"

namespace sparsekv {

namespace {

constexpr char kHead[] =
    "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
    "<meta name='viewport' content='width=device-width'><title>%s</title><style>"
    "body{font:15px/1.45 sans-serif;max-width:1040px;margin:2em auto;padding:0 1em;color:#1a1a1a}"
    "table{border-collapse:collapse;margin:1em 0;font-size:12.5px}"
    "td,th{padding:3px 7px;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left}th{background:#f4f4f4}"
    "td:first-child{white-space:normal;overflow-wrap:anywhere;min-width:9em}"
    "dt{font-weight:bold}dd{margin:0 0 .4em 0}svg{max-width:100%%;height:auto}"
    "tr.dense td{background:#fafad2}details{margin:1em 0}</style></head><body>\n";

constexpr char kHow[] =
    "<h2>How to read this</h2><dl>"
    "<dt>budget</dt><dd>How many token rows (K and V of one token in one layer and KV head) a "
    "selection may hold: a count, or 1/N of the tokens present. %s</dd>"
    "<dt>rows, bytes</dt><dd>Rows of a selection in the mean. What was read in each decode step, "
    "as "
    "a share of what dense attention reads: rows; and bytes, which are rows and everything read to "
    "choose them (labels, page "
    "bounds, part of K). The oracle reads all of K to choose and is not charged for it: it is a "
    "bound, not a method.</dd>"
    "<dt>recall</dt><dd>The share of dense attention that the selected rows held, mean over steps, "
    "layers and KV heads, where it was looked at: it costs much and says what a budget leaves "
    "out.</dd>"
    "<dt>change</dt><dd>Beside dense attention on the same cases; for perplexity in per cent of "
    "it, "
    "for accuracy in points of a hundred.</dd>"
    "<dt>interval</dt><dd>95 %% by bootstrap, %u draws of %s, the same draws for every policy, so "
    "that differences are paired.</dd>"
    "<dt>how it was run</dt><dd>The prefix of every case is computed densely, once; what comes "
    "after (the window's last tokens; the question and its answer) is decoded token by token under "
    "the policy.</dd></dl>\n";

std::string Sentence(std::string text) {
  if (!text.empty()) text[0] = absl::ascii_toupper(static_cast<unsigned char>(text[0]));
  return text + ".";
}

std::string Percent(double share) { return absl::StrFormat("%.2f %%", 100 * share); }

bool Perplexity(const TaskSummary& task) { return task.metric == Metric::kPerplexity; }

std::string ScoreText(const TaskSummary& task, double value) {
  return Perplexity(task) ? absl::StrFormat("%.3f", value)
                          : absl::StrFormat("%.2f %%", 100 * value);
}

std::string Table(const TaskSummary& task) {
  const bool recall =
      std::ranges::any_of(task.candidates, [](const auto& c) { return c.recall.has_value(); });
  std::string html = absl::StrFormat(
      "<table><tr><th>policy</th><th>budget</th><th>%s</th><th>its interval</th>"
      "<th>change, %s</th><th>its interval</th><th>rows</th><th>rows, share</th>"
      "<th>bytes, share</th><th>KiB a step</th>%s</tr>\n",
      Perplexity(task) ? "perplexity" : (task.name == "recall" ? "attention captured" : "accuracy"),
      Perplexity(task) ? "%" : "points", recall ? "<th>recall</th>" : "");
  for (const CandidateSummary& c : task.candidates) {
    absl::StrAppendFormat(
        &html,
        "<tr%s><td>%s</td><td>%s</td><td>%s</td><td>%s .. %s</td><td>%+.2f</td>"
        "<td>%+.2f .. %+.2f</td><td>%.1f</td><td>%s</td><td>%s</td><td>%.1f</td>"
        "%s</tr>\n",
        c.policy == "dense" ? " class='dense'" : "", Escape(c.policy), Escape(c.budget),
        ScoreText(task, c.value.value), ScoreText(task, c.value.low), ScoreText(task, c.value.high),
        100 * c.change.value, 100 * c.change.low, 100 * c.change.high, c.mean_rows,
        Percent(c.rows_share), Percent(c.bytes_share), c.bytes_per_step / 1024,
        recall ? absl::StrCat("<td>", c.recall ? Percent(*c.recall) : "", "</td>") : "");
  }
  return html + "</table>\n";
}

// One line per policy, over its budgets.
Plot PlotOf(const TaskSummary& task, bool bytes) {
  Plot plot;
  plot.title = absl::StrCat(task.name, bytes ? ": by bytes read" : ": by rows attended");
  plot.x_title = bytes ? "bytes read per decode step, share of dense attention's (log)"
                       : "rows attended per decode step, share of dense attention's (log)";
  // Texts differ more than policies do: perplexity is drawn beside dense, with the paired interval.
  const bool change = Perplexity(task);
  plot.y_title = change                  ? "perplexity above dense attention's, % (lower is better)"
                 : task.name == "recall" ? "dense attention captured, %"
                                         : "accuracy, %";
  plot.y_from_zero = !change;
  plot.x_percent = bytes;
  plot.reference = change ? 0 : task.candidates[0].value.value;
  plot.reference_name = "dense";
  std::map<std::string, size_t> places;
  double low = 1;
  for (const CandidateSummary& c : task.candidates) {
    if (c.policy == "dense") continue;
    const auto [place, added] = places.try_emplace(c.policy, plot.lines.size());
    if (added) plot.lines.push_back({c.policy, {}});
    const double x = bytes ? c.bytes_share : c.rows_share;
    low = std::min(low, x);
    const Estimate& y = change ? c.change : c.value;
    plot.lines[place->second].points.push_back({x, y.value, y.low, y.high});
  }
  for (PlotLine& line : plot.lines) std::ranges::sort(line.points, {}, &PlotPoint::x);
  plot.x_low = std::max(low * 0.9, 1e-5);
  plot.x_high = 1;
  return plot;
}

// Attention captured by layer and head.
std::string Heads(const TaskSummary& task, size_t kv_heads) {
  std::string html;
  for (const CandidateSummary& c : task.candidates) {
    if (c.captured.empty() || c.policy == "dense") continue;
    for (const auto& [values, what] : {std::pair{&c.captured, "attention captured"},
                                       std::pair{&c.overlap, "rows shared with the oracle's"}}) {
      HeatMap map = {absl::StrCat(c.policy, " ", c.budget, ": ", what), "layer", "KV head", {}};
      for (size_t at = 0; at < values->size(); at += kv_heads) {
        const auto from = values->begin() + static_cast<long>(at);
        map.values.emplace_back(from, from + static_cast<long>(kv_heads));
      }
      html += map.ToSvg();
    }
  }
  return absl::StrCat("<details><summary>By layer and KV head</summary>", html, "</details>\n");
}

// What the label cache of `double-sparsity` holds where the policy's name says nothing else.
std::string LabelsText(const nlohmann::ordered_json& settings) {
  const auto channels = settings.find("channels");
  if (channels == settings.end() || !channels->is_object()) return "";
  return absl::StrFormat(" Labels: %d channels of %d in %s, chosen by %s.",
                         channels->at("count").get<int>(), settings.at("head_dim").get<int>(),
                         Escape(channels->at("label_format").get<std::string>()),
                         Escape(channels->at("criterion").get<std::string>()));
}

std::string SettingsTable(const nlohmann::ordered_json& settings) {
  std::string html =
      "<h2>Settings</h2><p>0 or nothing: the default, or not for these tasks.</p><table>";
  for (const auto& [name, value] : settings.items()) {
    if (name == "candidates") continue;
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    absl::StrAppendFormat(&html, "<tr><td>%s</td><td style='text-align:left'>%s</td></tr>\n",
                          Escape(name), Escape(text));
  }
  return html + "</table>\n";
}

}  // namespace

std::string EvalReport::ToHtml(const std::string& date) const {
  const std::string model = settings.at("model");
  const std::string title = absl::StrCat("Sparse attention on ", model);
  std::string html = absl::StrFormat(kHead, Escape(title));
  absl::StrAppendFormat(
      &html,
      "<h1>%s</h1><p>Made by <code>sparsekv eval</code> on %s. Model %s (fingerprint %s): %d "
      "layers, %d query heads, %d KV heads of %d, rows of %s. Contexts of %d tokens, seed "
      "%d.%s</p>\n",
      Escape(title), Escape(date), Escape(model),
      Escape(settings.at("fingerprint").get<std::string>()), settings.at("layers").get<int>(),
      settings.at("query_heads").get<int>(), settings.at("kv_heads").get<int>(),
      settings.at("head_dim").get<int>(), Escape(settings.at("rows").get<std::string>()),
      settings.at("context").get<int>(), settings.at("seed").get<int>(), LabelsText(settings));
  const bool bytes = settings.at("budget_unit") == "bytes";
  for (const TaskSummary& task : tasks) {
    absl::StrAppendFormat(&html, "<h2>%s</h2><p>%s %u cases, %.0f %s.</p>\n", Escape(task.name),
                          Escape(Sentence(task.about)), task.cases, task.units,
                          Perplexity(task) || task.name == "recall" ? "tokens" : "questions");
    html += PlotOf(task, true).ToSvg();
    html += PlotOf(task, false).ToSvg();
    html += Table(task);
    if (task.name == "recall") html += Heads(task, settings.at("kv_heads").get<size_t>());
  }
  absl::StrAppendFormat(&html, kHow,
                        bytes
                            ? "Here what is read to choose the rows is paid from it too: every "
                              "policy reads the same bytes where it can."
                            : "What is read to choose the rows comes on top, and is in the bytes.",
                        kResamples, "cases (perplexity: stretches of 128 tokens)");
  return html + SettingsTable(settings) + "</body></html>\n";
}

}  // namespace sparsekv
