#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/eval/policies/head_policy.h"
#include "cli/eval/policies/policies.h"
#include "gpu_worker/channel_config.h"

namespace sparsekv {

// A policy as a command line names it: NAME, or NAME:KEY=VALUE,KEY=VALUE with the parameters that
// README.md lists. Constant once parsed.
class PolicySpec {
 public:
  // One line that names the policy, the parameter and the value.
  static absl::StatusOr<PolicySpec> Parse(const std::string& text);

  const std::string& text() const { return text_; }
  const std::string& name() const { return name_; }
  bool dense() const { return name_ == "dense"; }
  bool adaptive() const { return name_ == "double-sparsity-adaptive"; }
  bool needs_channels() const;   // of a channel config
  bool needs_attention() const;  // PromptStatistics::attention
  bool needs_last_attention() const;
  bool needs_values() const;  // the mean of all values
  bool needs_prediction() const;
  // Which channel config, of those with a name; "" = the model's.
  const std::string& channel_set() const { return channel_set_; }

  // What cannot be seen without the model.
  absl::Status Check(const HeadShape& shape, const ChannelConfig* channels) const;
  // By layer, then KV head, as `shapes`, which are a whole model's.
  // REQUIRES: not dense; Check is OK. `channels` outlives the policies.
  std::vector<std::unique_ptr<HeadPolicy>> Make(std::span<const HeadShape> shapes,
                                                const ChannelConfig* channels, uint64_t seed) const;

  static std::vector<std::string> Names();

 private:
  std::unique_ptr<HeadPolicy> MakeHead(const HeadShape& shape, const ChannelConfig* channels,
                                       uint64_t seed) const;
  DoubleSparsityOptions Labels(const HeadShape& shape, const ChannelConfig& channels) const;
  double Number(const std::string& key) const { return parameters_.at(key); }
  uint32_t Count(const std::string& key) const {
    return static_cast<uint32_t>(parameters_.at(key));
  }

  std::string text_, name_, channel_set_;
  std::map<std::string, double> parameters_;  // all of the policy's, defaults filled in
};

}  // namespace sparsekv
