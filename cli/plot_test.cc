#include "cli/plot.h"

#include <gtest/gtest.h>

#include <set>

namespace sparsekv {
namespace {

double WidthOf(const std::string& svg) {
  const size_t at = svg.find("width='") + 7;
  return std::stod(svg.substr(at));
}

// What stands to the right of a picture's end is cut off. Seven pixels hold a character of 11
// pixels' height, nine one of 14, bold, in the fonts that browsers take.
TEST(Plot, ItsNamesHaveRoom) {
  const std::string title(60, 'o');
  const HeatMap map = {title, "layer", "KV head", {{0.5}}};
  EXPECT_GE(WidthOf(map.ToSvg()), 8 + 9.0 * 60);

  Plot plot;
  plot.x_low = 0.01;
  plot.lines = {{std::string(60, 'o'), {{0.1, 0.5}}}};
  const std::string svg = plot.ToSvg();
  const size_t name = svg.find(">" + plot.lines[0].name);
  ASSERT_NE(name, std::string::npos);
  const size_t at = svg.rfind("<text x='", name) + 9;
  EXPECT_GE(WidthOf(svg), std::stod(svg.substr(at)) + 7.0 * 60);
  plot.lines[0].name = "o";
  EXPECT_LT(WidthOf(plot.ToSvg()), WidthOf(svg));
}

// By their marks alone, where colours are not seen.
TEST(Plot, SixLinesHaveSixMarks) {
  Plot plot;
  plot.x_low = 0.01;
  for (int line = 0; line < 6; ++line) plot.lines.push_back({"", {{0.1, 0.5}}});
  const std::string svg = plot.ToSvg();
  std::set<std::string> marks;
  for (size_t at = svg.find("stroke-width='1.6'/>"); at != std::string::npos;
       at = svg.find("stroke-width='1.6'/>", at + 1)) {
    std::string mark = svg.substr(svg.find("/>", at) + 2);
    mark.resize(mark.find('#'));  // up to its colour
    std::erase_if(mark, [](char c) { return (c >= '0' && c <= '9') || c == '.'; });
    marks.insert(mark);
  }
  EXPECT_EQ(marks.size(), 6u);
}

}  // namespace
}  // namespace sparsekv
