#include "cli/eval/scoring.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <set>
#include <sstream>

namespace sparsekv {

namespace {

std::string Lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

// Lower case, without punctuation, in words; without articles where those say nothing.
std::vector<std::string> Words(const std::string& text, bool articles) {
  std::string plain;
  for (char c : Lower(text)) plain += std::ispunct(static_cast<unsigned char>(c)) ? ' ' : c;
  std::istringstream in(plain);
  std::vector<std::string> words;
  for (std::string word; in >> word;) {
    if (articles || (word != "a" && word != "an" && word != "the")) words.push_back(word);
  }
  return words;
}

double F1(double common, size_t given, size_t wanted) {
  if (common == 0) return 0;
  const double precision = common / static_cast<double>(given);
  const double recall = common / static_cast<double>(wanted);
  return 2 * precision * recall / (precision + recall);
}

double WordF1(const std::string& text, const std::string& answer) {
  const auto given = Words(text, false), wanted = Words(answer, false);
  std::map<std::string, int> left;
  for (const std::string& word : wanted) ++left[word];
  double common = 0;
  for (const std::string& word : given) common += left[word]-- > 0;
  return F1(common, given.size(), wanted.size());
}

double RougeL(const std::string& text, const std::string& answer) {
  const auto given = Words(text, true), wanted = Words(answer, true);
  std::vector<int> row(wanted.size() + 1, 0);
  for (const std::string& word : given) {
    int diagonal = 0;
    for (size_t j = 0; j < wanted.size(); ++j) {
      const int above = row[j + 1];
      row[j + 1] = word == wanted[j] ? diagonal + 1 : std::max(row[j + 1], row[j]);
      diagonal = above;
    }
  }
  return F1(row.back(), given.size(), wanted.size());
}

double Classification(const std::string& text, const std::string& answer,
                      std::span<const std::string> classes) {
  std::vector<std::string> named;
  for (const std::string& c : classes) {
    if (text.find(c) != std::string::npos) named.push_back(c);
  }
  // A class whose name lies inside the right one's is no other answer.
  std::erase_if(named, [&](const std::string& c) {
    return c != answer && answer.find(c) != std::string::npos;
  });
  const bool right = std::ranges::find(named, answer) != named.end();
  return right ? 1.0 / static_cast<double>(named.size()) : 0.0;
}

std::vector<std::string> Numbers(const std::string& text) {
  std::vector<std::string> numbers(1);
  for (char c : text) {
    if (std::isdigit(static_cast<unsigned char>(c))) {
      numbers.back() += c;
    } else if (!numbers.back().empty()) {
      numbers.emplace_back();
    }
  }
  if (numbers.back().empty()) numbers.pop_back();
  return numbers;
}

double NumberShare(const std::string& text, const std::string& answer) {
  const auto given = Numbers(text), wanted = Numbers(answer);
  if (given.empty() || wanted.empty()) return 0;
  return static_cast<double>(std::ranges::count(given, wanted[0])) /
         static_cast<double>(given.size());
}

// The first line that is neither a comment nor a fence.
std::string CodeLine(const std::string& text) {
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    if (line.empty() || line.find('`') != std::string::npos) continue;
    if (line.find('#') != std::string::npos || line.find("//") != std::string::npos) continue;
    return line;
  }
  return "";
}

// 2 x longest common subsequence / both lengths.
double EditSimilarity(const std::string& a, const std::string& b) {
  if (a.empty() && b.empty()) return 1;
  std::vector<size_t> row(b.size() + 1, 0);
  for (char x : a) {
    size_t diagonal = 0;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t above = row[j + 1];
      row[j + 1] = x == b[j] ? diagonal + 1 : std::max(row[j + 1], row[j]);
      diagonal = above;
    }
  }
  return 2.0 * static_cast<double>(row.back()) / static_cast<double>(a.size() + b.size());
}

double ScoreOne(Scoring scoring, const std::string& text, const std::string& answer,
                std::span<const std::string> classes) {
  switch (scoring) {
    case Scoring::kF1:
      return WordF1(text, answer);
    case Scoring::kRougeL:
      return RougeL(text, answer);
    case Scoring::kClassification:
      return Classification(text, answer, classes);
    case Scoring::kCount:
    case Scoring::kPassage:
      return NumberShare(text, answer);
    case Scoring::kCodeEdit:
      return EditSimilarity(CodeLine(text), answer);
    case Scoring::kContainsAll:
    case Scoring::kContainsAny:
      return Lower(text).find(Lower(answer)) != std::string::npos ? 1 : 0;
  }
  return 0;
}

}  // namespace

double Score(Scoring scoring, const std::string& text, std::span<const std::string> answers,
             std::span<const std::string> classes) {
  double best = 0, sum = 0;
  for (const std::string& answer : answers) {
    const double score = ScoreOne(scoring, text, answer, classes);
    best = std::max(best, score);
    sum += score;
  }
  if (scoring != Scoring::kContainsAll) return best;
  return answers.empty() ? 0 : sum / static_cast<double>(answers.size());
}

}  // namespace sparsekv
