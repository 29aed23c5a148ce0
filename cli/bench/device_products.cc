#include <algorithm>
#include <numeric>

#include "cli/bench/device_cases.h"

// Matrix products of a model's layer and head, as the forward pass asks for them: few tokens in
// decode steps, compared with the copy's bytes per second, and a prompt's chunk, compared with the
// product ceiling. Consecutive runs take the weights that come next in the pool.
namespace sparsekv {
namespace {

struct Shape {
  uint32_t rows = 0, cols = 0;

  size_t bytes() const { return size_t{2} * rows * cols; }
  // Where the next matrix may begin.
  size_t stride() const { return (bytes() + 255) / 256 * 256; }
};

class Products {
 public:
  using Views = std::span<const WeightView>;
  struct Product {
    const char* weight;
    std::vector<Shape> shapes;
    void (Products::*run)(Views);

    size_t stride() const {
      return std::accumulate(shapes.begin(), shapes.end(), size_t{0},
                             [](size_t sum, const Shape& shape) { return sum + shape.stride(); });
    }
  };

  Products(DeviceBench& bench, const DeviceGrid::Model& model, uint32_t tokens)
      : bench_(bench),
        model_(model),
        tokens_(tokens),
        x_(NormalsOn(bench.backend(), size_t{tokens} * Widest())),
        hidden_(NormalsOn(bench.backend(), size_t{tokens} * model.hidden)),
        normed_(bench.backend(), size_t{tokens} * model.hidden),
        y_(bench.backend(), size_t{tokens} * std::max(MostOutputs(), model.vocab)),
        spare_(bench.backend(), size_t{tokens} * model.intermediate) {}

  std::vector<Product> All() const {
    const uint32_t hidden = model_.hidden, width = model_.width(), kv = model_.kv_width();
    const uint32_t inner = model_.intermediate;
    const std::vector<Shape> qkv = {{1, hidden}, {width, hidden}, {kv, hidden}, {kv, hidden}};
    const std::vector<Shape> o = {{hidden, width}};
    const std::vector<Shape> gate_up = {{1, hidden}, {inner, hidden}, {inner, hidden}};
    const std::vector<Shape> down = {{hidden, inner}};
    std::vector<Shape> layer;
    for (const auto& part : {qkv, o, gate_up, down}) {
      layer.insert(layer.end(), part.begin(), part.end());
    }
    return {{"q k v", qkv, &Products::Project},
            {"o", o, &Products::Add},
            {"gate up", gate_up, &Products::GateUp},
            {"down", down, &Products::Add},
            {"whole layer", layer, &Products::Layer},
            {"lm_head", {{1, hidden}, {model_.vocab, hidden}}, &Products::Project}};
  }

  void Run(const Product& product, uint32_t i) {
    const size_t places = std::max<size_t>(1, bench_.pool().size() / product.stride());
    std::byte* at = bench_.pool().data() + i % places * product.stride();
    std::vector<WeightView> views;
    for (const Shape& shape : product.shapes) {
      views.push_back({at, DType::kBF16, shape.rows, shape.cols});
      at += shape.stride();
    }
    (this->*product.run)(views);
  }

 private:
  uint32_t Widest() const { return std::max(model_.width(), model_.intermediate); }
  uint32_t MostOutputs() const {
    return std::max(model_.width() + 2 * model_.kv_width(), model_.intermediate);
  }

  // The norm, then matrices that share their input.
  void Project(Views views) {
    std::vector<ProjectArgs::Output> outputs;
    size_t at = 0;
    for (const WeightView& weight : views.subspan(1)) {
      outputs.push_back({weight, y_.data() + at});
      at += size_t{tokens_} * weight.rows;
    }
    bench_.backend().Project({.x = hidden_->data(),
                              .tokens = tokens_,
                              .norm = views[0],
                              .normed = normed_.data(),
                              .outputs = outputs});
  }

  void Add(Views views) {
    bench_.backend().Linear({.x = x_->data(),
                             .tokens = tokens_,
                             .weight = views[0],
                             .y = hidden_->data(),
                             .accumulate = true});
  }

  void GateUp(Views views) {
    bench_.backend().GateUp({.x = hidden_->data(),
                             .tokens = tokens_,
                             .norm = views[0],
                             .gate = views[1],
                             .up = views[2],
                             .normed = normed_.data(),
                             .spare = spare_.data(),
                             .out = y_.data()});
  }

  void Layer(Views views) {
    Project(views.subspan(0, 4));
    Add(views.subspan(4, 1));
    GateUp(views.subspan(5, 3));
    Add(views.subspan(8, 1));
  }

  DeviceBench& bench_;
  const DeviceGrid::Model& model_;
  const uint32_t tokens_;
  const std::unique_ptr<DeviceArray<float>> x_, hidden_;
  DeviceArray<float> normed_, y_, spare_;
};

void Measure(DeviceBench& bench, const DeviceGrid::Model& model, StepKind kind, uint32_t tokens) {
  const bool decode = kind == StepKind::kDecode;
  const char* name = decode ? "linear_decode" : "linear_prompt";
  if (!bench.Wants(name)) return;
  Products products(bench, model, tokens);
  for (const Products::Product& product : products.All()) {
    if (product.stride() > bench.pool().size()) continue;
    double bytes = 0, weights = 0;
    for (const Shape& shape : product.shapes) {
      bytes += static_cast<double>(shape.bytes());
      if (shape.rows > 1) weights += double(shape.rows) * shape.cols;
    }
    bench.Measure({.item = {name,
                            {{"model", model.name},
                             {"weight", product.weight},
                             {decode ? "batch" : "tokens", tokens},
                             {"dtype", "bf16"}},
                            bytes,
                            2 * weights * tokens},
                   .kind = kind,
                   .limit = decode ? DeviceBench::Limit::kCopy : DeviceBench::Limit::kProduct,
                   .run = [&](uint32_t i) { products.Run(product, i); }});
  }
}

}  // namespace

void BenchProducts(DeviceBench& bench, const DeviceGrid& grid, const DeviceGrid::Model& model) {
  for (uint32_t batch : grid.batches) Measure(bench, model, StepKind::kDecode, batch);
  Measure(bench, model, StepKind::kPrompt, grid.prompt_tokens);
}

}  // namespace sparsekv
