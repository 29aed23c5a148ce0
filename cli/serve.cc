// `sparsekv serve`: options, a TOML file of the same names, and the check of both. The server
// itself is cli/server.h.
#include <toml++/toml.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "cli/commands.h"
#include "cli/serve_options.h"
#include "cli/server.h"
#include "gpu_worker/device_rows.h"
#include "gpu_worker/simulated_link.h"

namespace sparsekv {

namespace {

// What the interface promises but a later version brings. Said at once, not halfway.
absl::Status CheckSupported(const ServeOptions& o) {
  auto later = [](const char* option, const std::string& value) {
    return absl::UnimplementedError(absl::StrCat(option, " ", value, ": not in this version"));
  };
  if (o.tensor_parallel != 1) {
    return later("--tensor-parallel", std::to_string(o.tensor_parallel));
  }
  for (const auto& [option, value, set] :
       {std::tuple{"--correction", "none", o.correction == "none"},
        {"--fetch", "gather", o.fetch == "gather"}}) {
    if (set && o.predict != "on") {
      return absl::InvalidArgumentError(
          absl::StrCat(option, " ", value, ": is about predictions, needs --predict on"));
    }
  }
  if (o.correction == "none" && o.placement != "offload") {
    return absl::InvalidArgumentError(
        "--correction none: needs --placement offload, or it would hold of some sequences only");
  }
  for (const auto& [option, value] :
       {std::pair{"--hot-rows", o.hot_rows}, {"--predict", o.predict}}) {
    if (o.placement == "resident" && value != "off") {
      return absl::InvalidArgumentError(
          absl::StrCat(option, " ", value, ": --placement resident keeps every row"));
    }
  }
  if (o.mirror_rows && o.placement == "resident") {
    return absl::InvalidArgumentError(
        "--mirror-rows: is about rows in host memory, --placement resident reads none there");
  }
  if (o.hot_rows != "off" &&
      (o.hot_rows[0] == '0' || !std::ranges::all_of(o.hot_rows, absl::ascii_isdigit))) {
    return absl::InvalidArgumentError(
        absl::StrCat("--hot-rows: \"", o.hot_rows, "\" is not a decimal count"));
  }
  return LinkSpec::Parse(o.link).status();
}

// A file's values are taken where the command line says nothing.
absl::Status ReadConfig(CLI::App* app, const std::string& path) {
  toml::table table;
  try {
    table = toml::parse_file(path);
  } catch (const toml::parse_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ":", error.source().begin.line, ": ", std::string(error.description())));
  }
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    CLI::Option* option = app->get_option_no_throw("--" + name);
    if (option == nullptr || name == "config" || name == "help") {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", name, ": no such option"));
    }
    std::string value;
    if (auto text = node.value_exact<std::string>()) {
      value = *text;
    } else if (auto number = node.value_exact<int64_t>()) {
      value = std::to_string(*number);
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": ", name, ": is neither a string nor an integer"));
    }
    if (option->count() > 0) continue;
    try {
      option->add_result(value);
      option->run_callback();
    } catch (const CLI::ParseError& error) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", name, ": ", error.what()));
    }
  }
  return absl::OkStatus();
}

void AddOptions(CLI::App* app, ServeOptions* o) {
  const CLI::AsSizeValue bytes(/*kb_is_1000=*/false);
  app->add_option("--model", o->model_dir, "checkpoint directory (Hugging Face layout)");
  app->add_option("--backend", o->backend, "where the model runs")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  app->add_option("--workers", o->workers, "replicas of the model")
      ->check(CLI::Range(1u, 16u))
      ->capture_default_str();
  app->add_option("--tensor-parallel", o->tensor_parallel, "ranks of each replica")
      ->check(CLI::Range(1u, 64u))
      ->capture_default_str();
  app->add_option("--grpc", o->grpc, "HOST:PORT of the gRPC API, port 0 = any")
      ->capture_default_str();
  app->add_option("--http", o->http, "HOST:PORT of metrics and health, or off")
      ->capture_default_str();
  app->add_option("--state", o->state_dir, "directory of this server; default a temporary one");
  app->add_option("--host-memory", o->host_memory_bytes,
                  "bytes (k, M, G) for token rows; default half of what is available")
      ->transform(bytes);
  app->add_option("--device-memory", o->device_memory_bytes,
                  "bytes (k, M, G) of a worker's device; default 1G on cpu (without the weights), "
                  "90 % of what is free on cuda")
      ->transform(bytes);
  app->add_option("--placement", o->placement, "where a sequence's rows live")
      ->check(CLI::IsMember({"auto", "resident", "offload"}))
      ->capture_default_str();
  app->add_option("--fetch", o->fetch, "how selected rows are read")
      ->check(CLI::IsMember({"direct", "gather"}))
      ->capture_default_str();
  app->add_option("--predict", o->predict, "prefetch of the next layer's selection")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  app->add_option("--correction", o->correction, "what becomes of mispredicted rows")
      ->check(CLI::IsMember({"on", "none"}))
      ->capture_default_str();
  app->add_option("--hot-rows", o->hot_rows,
                  "rows of a sequence per layer and KV head kept on the device, or off")
      ->check(CLI::Range(1u, DeviceRows::kMostSelected) | CLI::IsMember({"off"}))
      ->capture_default_str();
  app->add_option("--link", o->link,
                  "cpu: a simulated link to the device, BYTES_PER_S,LATENCY_S, or off")
      ->capture_default_str();
  app->add_option("--channels", o->channels_file,
                  "channel config; default MODEL/channels.json where it exists; none = dense only");
  app->add_flag("--no-graphs", o->no_graphs, "cuda: launch every kernel of a step by itself");
  app->add_flag("--no-early-launch", o->no_early_launch, "cuda: begin kernels one after the other");
  app->add_flag("--exact-prompts", o->exact_prompts,
                "cuda: inputs of all of a prompt's products keep 16 bits; slower");
  app->add_flag(
      "--mirror-rows", o->mirror_rows,
      "cuda: offloaded rows are twice in host memory, once where the device reads fastest");
  app->add_option("--max-batch", o->max_batch, "sequences of one step")
      ->check(CLI::Range(1u, kMaxBatch))
      ->default_val(kMaxBatch);
  app->add_option("--threads", o->threads, "of each worker, 0 = every core")
      ->check(CLI::Range(0u, 1024u));
}

}  // namespace

void AddServe(CLI::App& app, Command* command) {
  CLI::App* sub = app.add_subcommand("serve", "serve a checkpoint: store, workers and coordinator");
  auto options = std::make_shared<ServeOptions>();
  auto config = std::make_shared<std::string>();
  AddOptions(sub, options.get());
  sub->add_option("--config", *config, "TOML file with the same names; the command line wins");
  sub->callback([=] {
    *command = [=]() -> absl::Status {
      if (!config->empty()) {
        if (absl::Status status = ReadConfig(sub, *config); !status.ok()) return status;
      }
      if (options->model_dir.empty()) {
        return absl::InvalidArgumentError("--model: is required");
      }
      if (absl::Status status = CheckSupported(*options); !status.ok()) return status;
      return Serve(*options);
    };
  });
}

}  // namespace sparsekv
