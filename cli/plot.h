#pragma once

#include <string>
#include <vector>

namespace sparsekv {

// A plot of shares over shares, lines as SVG, to stand inside a page: title, axes with units,
// ticks, a legend.
struct PlotPoint {
  double x = 0, y = 0;
  double low = 0, high = 0;  // of y
};
struct PlotLine {
  std::string name;
  std::vector<PlotPoint> points;  // in the order in which they are joined
};
struct Plot {
  std::string title, x_title, y_title;
  std::vector<PlotLine> lines;
  double x_low = 0, x_high = 1;  // logarithmic, base 2; both above 0
  bool x_percent = false;        // ticks as shares of a hundred, else as 1/N
  bool y_from_zero = false;      // y, shares of a hundred, from 0 to 1 or more
  double reference = 0;          // a line across: what all are compared with
  std::string reference_name;

  std::string ToSvg() const;
};

// A table of shares as colours, rows by columns, with its scale.
struct HeatMap {
  std::string title, row_name, column_name;
  std::vector<std::vector<double>> values;  // 0 .. 1

  std::string ToSvg() const;
};

// Text as it may stand in HTML and SVG.
std::string Escape(const std::string& text);

}  // namespace sparsekv
