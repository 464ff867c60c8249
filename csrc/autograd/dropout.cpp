// The derivative of dropout, for every backend, as nodes in C++: in small calls the overhead is the cost.
//
// It is dropout of the gradient with the same rng_state. Elements are numbered in the memory order of the *forward*
// output, whatever the gradient's own order; features are counted, so that no order matters. What is kept for it: 16
// bytes, and the strides. The derivative is itself an operator with this derivative: so are all higher ones.
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd/node.h"

namespace fastreg {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using Ints = at::OptionalSymIntArrayRef;
using Doubles = std::optional<at::ArrayRef<double>>;

const auto& dropout_operator() {
  static const auto op =
      find_operator<Tensor(const Tensor&, double, const Tensor&, Ints, Ints, Doubles)>("fastreg::dropout");
  return op;
}
const auto& dropout_in_place_operator() {
  static const auto op = find_operator<void(Tensor&, double, const Tensor&, Ints, Doubles)>("fastreg::dropout_");
  return op;
}
const auto& dropout_seeded_operator() {
  static const auto op =
      find_operator<std::tuple<Tensor, Tensor>(const Tensor&, double, Ints, Doubles)>("fastreg::dropout_seeded");
  return op;
}
const auto& dropout_seeded_in_place_operator() {
  static const auto op = find_operator<Tensor(Tensor&, double, Ints, Doubles)>("fastreg::dropout_seeded_");
  return op;
}
const auto& feature_operator() {
  static const auto op =
      find_operator<Tensor(const Tensor&, int64_t, double, const Tensor&, Ints, Doubles, const OptionalTensor&)>(
          "fastreg::feature_dropout");
  return op;
}
const auto& feature_in_place_operator() {
  static const auto op =
      find_operator<void(Tensor&, int64_t, double, const Tensor&, Ints, Doubles)>("fastreg::feature_dropout_");
  return op;
}
const auto& feature_seeded_operator() {
  static const auto op =
      find_operator<std::tuple<Tensor, Tensor>(const Tensor&, int64_t, double, Ints, Doubles, const OptionalTensor&)>(
          "fastreg::feature_dropout_seeded");
  return op;
}
const auto& feature_seeded_in_place_operator() {
  static const auto op =
      find_operator<Tensor(Tensor&, int64_t, double, Ints, Doubles)>("fastreg::feature_dropout_seeded_");
  return op;
}

// What the kinds of dropout have in common: which draws decide, and what becomes of kept and dropped elements.
struct Kind {
  std::optional<int64_t> dims;  // of feature dropout
  double p;
  Ints index_map;
  Doubles transform;
};

void keep(AutogradContext* ctx, const Kind& kind, const Tensor& rng_state, const Tensor& output) {
  ctx->save_for_backward({rng_state});
  auto& saved = ctx->saved_data;
  saved["p"] = kind.p;
  if (kind.dims) {
    saved["dims"] = *kind.dims;
  } else {
    saved["strides"] = output.sym_strides();
  }
  if (kind.index_map) saved["index_map"] = *kind.index_map;
  // Neither shift nor fill depends on the input.
  if (kind.transform) saved["scale"] = kind.transform->at(0);
}

// Dropout of a gradient or a tangent: shift and fill do not depend on the input. strides: of the output, in whose
// memory order elements are counted.
Tensor linear_part(const Kind& kind, const Tensor& x, const Tensor& rng_state, Ints strides,
                   const OptionalTensor& residual = std::nullopt) {
  std::array<double, 3> scale_alone = {0.0, -0.0, 0.0};
  Doubles transform;
  if (kind.transform) {
    scale_alone[0] = kind.transform->at(0);
    transform = scale_alone;
  }
  if (kind.dims)
    return call_in_backward(feature_operator(), x, *kind.dims, kind.p, rng_state, kind.index_map, transform, residual);
  return call_in_backward(dropout_operator(), x, kind.p, rng_state, strides, kind.index_map, transform);
}

Tensor gradient_of_input(AutogradContext* ctx, const Tensor& grad_output) {
  const variable_list variables = ctx->get_saved_variables();
  TORCH_CHECK(variables.size() == 1, "dropout: rng_state must have been saved in forward, got an error there");
  const auto& saved = ctx->saved_data;
  const auto find = [&](const char* name) {
    const auto it = saved.find(name);
    return it == saved.end() ? nullptr : &it->second;
  };
  Kind kind{std::nullopt, saved.at("p").toDouble(), std::nullopt, std::nullopt};
  std::vector<c10::SymInt> map, strides;
  if (const auto* value = find("index_map")) kind.index_map = map = value->toSymIntVector();
  std::array<double, 3> scale;
  if (const auto* value = find("scale")) {
    scale.fill(value->toDouble());
    kind.transform = scale;
  }
  if (const auto* dims = find("dims"))
    kind.dims = dims->toInt();
  else
    strides = saved.at("strides").toSymIntVector();
  return linear_part(kind, grad_output, variables[0], Ints(strides));
}

struct Node : torch::autograd::Function<Node> {
  static constexpr bool is_traceable = true;

  // compute() -> (output, the rng_state that was used), below autograd; *used receives the latter.
  template <class Compute>
  static Tensor forward(AutogradContext* ctx, const Tensor&, const OptionalTensor& residual, const Kind& kind,
                        Tensor* used, const Compute& compute) {
    Tensor output;
    std::tie(output, *used) = compute();
    if (requires_grad(residual)) ctx->saved_data["residual"] = true;
    keep(ctx, kind, *used, output);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_output) {
    variable_list gradients(5);
    if (ctx->needs_input_grad(0)) gradients[0] = gradient_of_input(ctx, grad_output[0]);
    if (ctx->saved_data.count("residual")) gradients[1] = grad_output[0];
    return gradients;
  }
};

struct InPlaceNode : torch::autograd::Function<InPlaceNode> {
  static constexpr bool is_traceable = true;

  struct Recorded {
    Tensor rng_state;
    AutogradContext* context;
  };

  // compute() -> the rng_state that was used.
  template <class Compute>
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Kind& kind, Recorded* recorded,
                        const Compute& compute) {
    ctx->mark_dirty({input});
    *recorded = {compute(), ctx};
    const Tensor in_order = kind.dims || input.is_non_overlapping_and_dense() ? input : at::empty_like(input);
    keep(ctx, kind, recorded->rng_state, in_order);
    return input;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_output) {
    return {gradient_of_input(ctx, grad_output[0]), Tensor(), Tensor(), Tensor()};
  }
};

template <class Compute>
std::tuple<Tensor, Tensor> recorded(const Tensor& input, const OptionalTensor& residual, const Kind& kind,
                                    const Compute& compute) {
  if (has_tangent(input) || has_tangent(residual)) {
    auto [output, used] = recorded(primal(input), primal(residual), kind, compute);
    const Tensor of_input = tangent(input), of_residual = tangent(residual);
    const auto addend = of_residual.defined() ? OptionalTensor(of_residual) : std::nullopt;
    output._set_fw_grad(
        of_input.defined() ? linear_part(kind, of_input, used, output.sym_strides(), addend) : of_residual, 0, false);
    return {std::move(output), std::move(used)};
  }
  if (!at::GradMode::is_enabled() || !(input.requires_grad() || requires_grad(residual)))
    return compute(input, residual);
  Tensor used;
  Tensor output = record<Node>([&] { return compute(input, residual); }, input, residual, kind, &used);
  return {std::move(output), std::move(used)};
}

template <class Compute>
Tensor recorded_in_place(const Tensor& input, const Kind& kind, const Compute& compute) {
  const bool records = at::GradMode::is_enabled() && input.requires_grad();
  // mark_dirty would refuse the same, but after the write.
  torch::autograd::check_inplace(input, records);
  if (!records) return compute();
  InPlaceNode::Recorded recorded;
  record<InPlaceNode>(compute, input, kind, &recorded);
  recorded.context->mark_dirty({});  // has done its work, and compiled autograd takes no node with it
  return recorded.rng_state;
}

Tensor dropout(const Tensor& input, double p, const Tensor& given_state, Ints strides, Ints index_map,
               Doubles transform) {
  const Tensor rng_state = savable(given_state);
  return std::get<0>(recorded(
      input, std::nullopt, {std::nullopt, p, index_map, transform}, [&](const Tensor& x, const OptionalTensor&) {
        return std::tuple(call_below(dropout_operator(), x, p, rng_state, strides, index_map, transform), rng_state);
      }));
}
std::tuple<Tensor, Tensor> dropout_seeded(const Tensor& input, double p, Ints index_map, Doubles transform) {
  return recorded(input, std::nullopt, {std::nullopt, p, index_map, transform},
                  [&](const Tensor& x, const OptionalTensor&) {
                    return call_below(dropout_seeded_operator(), x, p, index_map, transform);
                  });
}
Tensor feature_dropout(const Tensor& input, int64_t dims, double p, const Tensor& given_state, Ints index_map,
                       Doubles transform, const OptionalTensor& residual) {
  const Tensor rng_state = savable(given_state);
  return std::get<0>(
      recorded(input, residual, {dims, p, index_map, transform}, [&](const Tensor& x, const OptionalTensor& addend) {
        return std::tuple(call_below(feature_operator(), x, dims, p, rng_state, index_map, transform, addend),
                          rng_state);
      }));
}
std::tuple<Tensor, Tensor> feature_dropout_seeded(const Tensor& input, int64_t dims, double p, Ints index_map,
                                                  Doubles transform, const OptionalTensor& residual) {
  return recorded(input, residual, {dims, p, index_map, transform}, [&](const Tensor& x, const OptionalTensor& addend) {
    return call_below(feature_seeded_operator(), x, dims, p, index_map, transform, addend);
  });
}

// In place, a tangent goes the way of the operators out of place.
Tensor copied(Tensor& input, std::tuple<Tensor, Tensor> output_and_state) {
  input.copy_(std::get<0>(output_and_state));
  return std::get<1>(output_and_state);
}

void dropout_(Tensor& input, double p, const Tensor& given_state, Ints index_map, Doubles transform) {
  const Tensor rng_state = savable(given_state);
  if (has_tangent(input)) {
    copied(input, {dropout(input, p, rng_state, std::nullopt, index_map, transform), rng_state});
    return;
  }
  recorded_in_place(input, {std::nullopt, p, index_map, transform}, [&] {
    call_below(dropout_in_place_operator(), input, p, rng_state, index_map, transform);
    return rng_state;
  });
}
Tensor dropout_seeded_(Tensor& input, double p, Ints index_map, Doubles transform) {
  if (has_tangent(input)) return copied(input, dropout_seeded(input, p, index_map, transform));
  return recorded_in_place(input, {std::nullopt, p, index_map, transform}, [&] {
    return call_below(dropout_seeded_in_place_operator(), input, p, index_map, transform);
  });
}
void feature_dropout_(Tensor& input, int64_t dims, double p, const Tensor& given_state, Ints index_map,
                      Doubles transform) {
  const Tensor rng_state = savable(given_state);
  if (has_tangent(input)) {
    copied(input, {feature_dropout(input, dims, p, rng_state, index_map, transform, std::nullopt), rng_state});
    return;
  }
  recorded_in_place(input, {dims, p, index_map, transform}, [&] {
    call_below(feature_in_place_operator(), input, dims, p, rng_state, index_map, transform);
    return rng_state;
  });
}
Tensor feature_dropout_seeded_(Tensor& input, int64_t dims, double p, Ints index_map, Doubles transform) {
  if (has_tangent(input))
    return copied(input, feature_dropout_seeded(input, dims, p, index_map, transform, std::nullopt));
  return recorded_in_place(input, {dims, p, index_map, transform}, [&] {
    return call_below(feature_seeded_in_place_operator(), input, dims, p, index_map, transform);
  });
}

}  // namespace
}  // namespace fastreg

TORCH_LIBRARY_IMPL(fastreg, Autograd, m) {
  m.impl("dropout", TORCH_FN(fastreg::dropout));
  m.impl("dropout_", TORCH_FN(fastreg::dropout_));
  m.impl("dropout_seeded", TORCH_FN(fastreg::dropout_seeded));
  m.impl("dropout_seeded_", TORCH_FN(fastreg::dropout_seeded_));
  m.impl("feature_dropout", TORCH_FN(fastreg::feature_dropout));
  m.impl("feature_dropout_", TORCH_FN(fastreg::feature_dropout_));
  m.impl("feature_dropout_seeded", TORCH_FN(fastreg::feature_dropout_seeded));
  m.impl("feature_dropout_seeded_", TORCH_FN(fastreg::feature_dropout_seeded_));
}
