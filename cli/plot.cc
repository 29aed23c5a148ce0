#include "cli/plot.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

namespace sparsekv {

namespace {

constexpr double kWidth = 860, kHeight = 400;
constexpr double kLeft = 72, kRight = 560, kTop = 34, kBottom = 346;  // of the plane

// Told apart by people who do not see red and green differently, and by their marks.
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9",
                                    "#e69f00", "#7f7f7f", "#8b4513", "#5d3a9b", "#1a1a1a",
                                    "#b3a100", "#c00000", "#4b8b3b", "#2f4f8f"};

std::string Mark(size_t kind, double x, double y, const char* colour) {
  switch (kind % 6) {
    case 0:
      return absl::StrFormat("<circle cx='%.1f' cy='%.1f' r='3.5' fill='%s'/>", x, y, colour);
    case 1:
      return absl::StrFormat("<rect x='%.1f' y='%.1f' width='7' height='7' fill='%s'/>", x - 3.5,
                             y - 3.5, colour);
    case 2:
      return absl::StrFormat("<path d='M%.1f %.1fl4.5 8h-9z' fill='%s'/>", x, y - 5, colour);
    case 3:
      return absl::StrFormat("<path d='M%.1f %.1fl5 5l-5 5l-5 -5z' fill='%s'/>", x, y - 5, colour);
    case 4:
      return absl::StrFormat("<path d='M%.1f %.1fl4.5 -8h-9z' fill='%s'/>", x, y + 5, colour);
    default:
      return absl::StrFormat("<path d='M%.1f %.1fl8 8m0 -8l-8 8' stroke='%s' stroke-width='2'/>",
                             x - 4, y - 4, colour);
  }
}

// At most what so many characters take, in pixels: browsers choose the font.
double TextWidth(const std::string& text, double font_size) {
  return 0.65 * font_size * static_cast<double>(text.size());
}

std::string Text(double x, double y, const char* anchor, const std::string& text,
                 const char* more = "") {
  return absl::StrFormat("<text x='%.1f' y='%.1f' text-anchor='%s'%s>%s</text>", x, y, anchor, more,
                         Escape(text));
}

std::string Line(double x1, double y1, double x2, double y2, const char* style) {
  return absl::StrFormat("<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' %s/>", x1, y1, x2, y2,
                         style);
}

std::string Percent(double share) { return absl::StrFormat("%.3g %%", 100 * share); }

// Round numbers over a range, five or so.
std::vector<double> Ticks(double low, double high) {
  const double rough = (high - low) / 5, decade = std::pow(10, std::floor(std::log10(rough)));
  double step = decade;
  for (double factor : {2.0, 5.0, 10.0}) {
    if (step < rough * 0.999) step = decade * factor;
  }
  std::vector<double> ticks;
  for (double t = std::ceil(low / step) * step; t <= high + step / 1000; t += step) {
    ticks.push_back(std::abs(t) < step / 1000 ? 0 : t);
  }
  return ticks;
}

struct Range {
  double low, high;
};

Range YRange(const Plot& plot) {
  Range range = {plot.reference, plot.reference};
  for (const PlotLine& line : plot.lines) {
    for (const PlotPoint& p : line.points) {
      range.low = std::min({range.low, p.y, p.low});
      range.high = std::max({range.high, p.y, p.high});
    }
  }
  if (plot.y_from_zero) return {0, std::max(1.0, range.high)};
  const double room = std::max((range.high - range.low) * 0.05, 1e-9);
  return {range.low - room, range.high + room};
}

// From values to places on the plane.
struct Plane {
  const Plot& plot;
  Range y;

  double X(double value) const {
    const double low = std::log2(plot.x_low), high = std::log2(plot.x_high);
    const double share = (std::log2(std::max(value, 1e-12)) - low) / std::max(high - low, 1e-9);
    return kLeft + std::clamp(share, 0.0, 1.0) * (kRight - kLeft);
  }
  double Y(double value) const {
    const double share = (value - y.low) / (y.high - y.low);
    return kBottom - std::clamp(share, 0.0, 1.0) * (kBottom - kTop);
  }
};

std::string Axes(const Plane& plane) {
  const Plot& plot = plane.plot;
  std::string svg;
  for (double tick : Ticks(plane.y.low, plane.y.high)) {
    const double y = plane.Y(tick);
    svg += Line(kLeft, y, kRight, y, "stroke='#e4e4e4'");
    svg += Text(kLeft - 6, y + 4, "end", Percent(tick));
  }
  const double first = std::floor(std::log2(plot.x_low)), last = std::ceil(std::log2(plot.x_high));
  for (double e = first; e <= last; ++e) {
    const double value = std::exp2(e);
    if (value < plot.x_low * 0.999 || value > plot.x_high * 1.001) continue;
    const double x = plane.X(value);
    svg += Line(x, kTop, x, kBottom, "stroke='#eeeeee'");
    const std::string name = plot.x_percent ? Percent(value)
                             : value < 1    ? absl::StrFormat("1/%.0f", 1 / value)
                                            : absl::StrFormat("%.0f", value);
    svg += Text(x, kBottom + 18, "middle", name);
  }
  svg += Line(kLeft, kBottom, kRight, kBottom, "stroke='#222'");
  svg += Line(kLeft, kTop, kLeft, kBottom, "stroke='#222'");
  svg += Text((kLeft + kRight) / 2, kBottom + 40, "middle", plot.x_title);
  svg += absl::StrFormat(
      "<text transform='translate(18 %.1f) rotate(-90)' "
      "text-anchor='middle'>%s</text>",
      (kTop + kBottom) / 2, Escape(plot.y_title));
  return svg;
}

std::string OneLine(const Plane& plane, const PlotLine& line, size_t index) {
  const char* colour = kColours[index % std::size(kColours)];
  std::string path, svg;
  for (const PlotPoint& p : line.points) {
    const double x = plane.X(p.x), y = plane.Y(p.y);
    absl::StrAppendFormat(&path, "%s%.1f %.1f", path.empty() ? "M" : "L", x, y);
    if (p.high > p.low) {
      svg += absl::StrFormat(
          "<path d='M%.1f %.1fV%.1fm-3 0h6M%.1f %.1fh6' stroke='%s' "
          "stroke-opacity='0.45' fill='none'/>",
          x, plane.Y(p.low), plane.Y(p.high), x - 3, plane.Y(p.low), colour);
    }
    svg += Mark(index, x, y, colour);
  }
  return absl::StrFormat("<path d='%s' fill='none' stroke='%s' stroke-width='1.6'%s/>", path,
                         colour, index >= 7 ? " stroke-dasharray='5 3'" : "") +
         svg;
}

// Wide enough for its title.
std::string Frame(double width, double height, const std::string& title, const std::string& body) {
  width = std::max(width, 16 + TextWidth(title, 14));
  return absl::StrFormat(
      "<svg viewBox='0 0 %.0f %.0f' width='%.0f' height='%.0f' role='img' "
      "aria-label='%s' font-family='sans-serif' font-size='12'>"
      "<text x='%.0f' y='18' font-size='14' font-weight='bold'>%s</text>%s"
      "</svg>\n",
      width, height, width, height, Escape(title), 8.0, Escape(title), body);
}

}  // namespace

std::string Escape(const std::string& text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string Plot::ToSvg() const {
  const Plane plane = {*this, YRange(*this)};
  std::string body = Axes(plane);
  double legend = kTop + 8, width = kWidth;
  const double at = plane.Y(reference);
  body += Line(kLeft, at, kRight, at, "stroke='#222' stroke-dasharray='2 3'");
  body += Line(kRight + 16, legend - 4, kRight + 40, legend - 4,
               "stroke='#222' stroke-dasharray='2 3'");
  body += Text(kRight + 46, legend, "start", reference_name, " font-size='11'");
  for (size_t i = 0; i < lines.size(); ++i) {
    legend += 20;
    const char* colour = kColours[i % std::size(kColours)];
    body += OneLine(plane, lines[i], i);
    body += Line(kRight + 16, legend - 4, kRight + 40, legend - 4,
                 absl::StrFormat("stroke='%s' stroke-width='1.6'%s", colour,
                                 i >= 7 ? " stroke-dasharray='5 3'" : "")
                     .c_str());
    body += Mark(i, kRight + 28, legend - 4, colour);
    body += Text(kRight + 46, legend, "start", lines[i].name, " font-size='11'");
    width = std::max(width, kRight + 54 + TextWidth(lines[i].name, 11));
  }
  return Frame(width, std::max(kHeight, legend + 20), title, body);
}

std::string HeatMap::ToSvg() const {
  constexpr double kCell = 34, kFromLeft = 64, kFromTop = 52;
  const size_t columns = values.empty() ? 0 : values[0].size();
  std::string body = Text(kFromLeft, 38, "start", column_name);
  for (size_t c = 0; c < columns; ++c) {
    body += Text(kFromLeft + kCell * (static_cast<double>(c) + 0.5), 50, "middle",
                 absl::StrFormat("%d", c), " font-size='10'");
  }
  for (size_t r = 0; r < values.size(); ++r) {
    const double y = kFromTop + 20 * static_cast<double>(r);
    body += Text(kFromLeft - 6, y + 14, "end", absl::StrFormat("%s %d", row_name, r),
                 " font-size='11'");
    for (size_t c = 0; c < columns; ++c) {
      const double v = std::clamp(values[r][c], 0.0, 1.0);
      const int red = static_cast<int>(247 - 214 * v), green = static_cast<int>(251 - 149 * v);
      const int blue = static_cast<int>(255 - 83 * v);
      body += absl::StrFormat(
          "<rect x='%.1f' y='%.1f' width='%.0f' height='19' "
          "fill='rgb(%d,%d,%d)'/>",
          kFromLeft + kCell * static_cast<double>(c), y, kCell - 1, red, green, blue);
      const char* ink = v > 0.55 ? " font-size='10' fill='#fff'" : " font-size='10'";
      body += Text(kFromLeft + kCell * (static_cast<double>(c) + 0.5), y + 13, "middle",
                   absl::StrFormat("%.2f", values[r][c]), ink);
    }
  }
  const double width = kFromLeft + kCell * static_cast<double>(columns) + 12;
  return Frame(std::max(width, 320.0), kFromTop + 20 * static_cast<double>(values.size()) + 12,
               title, body);
}

}  // namespace sparsekv
