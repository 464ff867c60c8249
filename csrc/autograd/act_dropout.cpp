// The derivatives of dropout with what stands next to it, for every backend, as nodes in C++.
// fastreg/ops/act_dropout.py has the second derivatives.
//
// What is kept: the input, the bias, and 16 bytes of random state; with the identity, whose derivative is dropout's
// own, the state alone.
#include <ATen/ops/sum.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <numeric>

#include "autograd/node.h"

namespace fastreg {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using OptionalInt = std::optional<int64_t>;
using Name = std::string_view;
using Strides = at::OptionalSymIntArrayRef;

const auto& forward_operator() {
  static const auto op =
      find_operator<Tensor(const Tensor&, const OptionalTensor&, Name, double, double, const OptionalTensor&,
                           const OptionalTensor&, OptionalInt, Strides)>("fastreg::act_dropout");
  return op;
}
const auto& seeded_operator() {
  static const auto op =
      find_operator<std::tuple<Tensor, Tensor>(const Tensor&, const OptionalTensor&, Name, double, double,
                                               const OptionalTensor&, OptionalInt)>("fastreg::act_dropout_seeded");
  return op;
}
const auto& backward_operator() {
  static const auto op =
      find_operator<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, Name, double, double,
                           const OptionalTensor&, OptionalInt, at::SymIntArrayRef)>("fastreg::act_dropout_backward");
  return op;
}
const auto& dropout_operator() {
  static const auto op = find_operator<Tensor(const Tensor&, double, const Tensor&, Strides, Strides,
                                              std::optional<at::ArrayRef<double>>)>("fastreg::dropout");
  return op;
}
const auto& feature_dropout_operator() {
  static const auto op =
      find_operator<Tensor(const Tensor&, int64_t, double, const Tensor&, Strides, std::optional<at::ArrayRef<double>>,
                           const OptionalTensor&)>("fastreg::feature_dropout");
  return op;
}

struct ActDropoutNode : torch::autograd::Function<ActDropoutNode> {
  static constexpr bool is_traceable = true;

  struct Arguments {
    Name act;
    double act_parameter, p;
    OptionalInt dims;
  };

  // compute() -> (output, the rng_state that was used), below autograd; *used receives the latter.
  template <class Compute>
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& bias,
                        const OptionalTensor& residual, const Arguments& a, const Compute& compute, Tensor* used) {
    Tensor output;
    std::tie(output, *used) = compute();
    auto& saved = ctx->saved_data;
    if (a.act == "identity") {
      ctx->save_for_backward({*used});
    } else {
      ctx->save_for_backward({*used, input, bias.value_or(Tensor())});
      saved["act"] = std::string(a.act);
      saved["act_parameter"] = a.act_parameter;
    }
    saved["p"] = a.p;
    if (a.dims) saved["dims"] = *a.dims;
    saved["strides"] = output.sym_strides();
    saved["bias"] = bias.has_value();
    saved["residual"] = residual.has_value();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_output) {
    const auto& saved = ctx->saved_data;
    const bool has_bias = saved.at("bias").toBool(), has_residual = saved.at("residual").toBool();
    // Arguments that are None are not counted.
    const bool input_wanted = ctx->needs_input_grad(0), bias_wanted = has_bias && ctx->needs_input_grad(1);
    variable_list all(6);
    if (has_residual && ctx->needs_input_grad(has_bias ? 2 : 1)) all[2] = grad_output[0];
    if (!input_wanted && !bias_wanted) return all;
    const Tensor gradient = gradient_of_input(ctx, grad_output[0]);
    if (input_wanted) all[0] = gradient;
    if (bias_wanted) {
      std::vector<int64_t> leading(size_t(gradient.dim() - 1));
      std::iota(leading.begin(), leading.end(), 0);
      all[1] = leading.empty() ? gradient : at::sum(gradient, leading);
    }
    return all;
  }

  static Tensor gradient_of_input(AutogradContext* ctx, const Tensor& grad_output) {
    const variable_list variables = ctx->get_saved_variables();
    const Tensor& rng_state = variables[0];
    const auto& saved = ctx->saved_data;
    const double p = saved.at("p").toDouble();
    const std::vector<c10::SymInt> strides = saved.at("strides").toSymIntVector();
    const auto found = saved.find("dims");
    const OptionalInt dims = found == saved.end() ? std::nullopt : OptionalInt(found->second.toInt());
    if (saved.count("act"))
      return call_in_backward(backward_operator(), grad_output, variables[1], or_none(variables[2]),
                              Name(saved.at("act").toStringView()), saved.at("act_parameter").toDouble(), p,
                              or_none(rng_state), dims, strides);
    if (p == 0.0) return grad_output;
    if (dims)
      return call_in_backward(feature_dropout_operator(), grad_output, *dims, p, rng_state, std::nullopt, std::nullopt,
                              OptionalTensor());
    return call_in_backward(dropout_operator(), grad_output, p, rng_state, Strides(strides), std::nullopt,
                            std::nullopt);
  }
};

template <class Compute>
std::tuple<Tensor, Tensor> recorded(const Tensor& input, const OptionalTensor& bias, const OptionalTensor& residual,
                                    const ActDropoutNode::Arguments& arguments, const Compute& compute) {
  TORCH_CHECK_NOT_IMPLEMENTED(!has_tangent(input) && !has_tangent(bias) && !has_tangent(residual),
                              "act_dropout: arguments must not have tangents, got one: use the function of this name");
  if (!at::GradMode::is_enabled() || !(input.requires_grad() || requires_grad(bias) || requires_grad(residual)))
    return compute();
  Tensor used;
  Tensor output = ActDropoutNode::apply(input, bias, residual, arguments, compute, &used);
  return {std::move(output), std::move(used)};
}

Tensor act_dropout(const Tensor& input, const OptionalTensor& bias, Name act, double act_parameter, double p,
                   const OptionalTensor& given_state, const OptionalTensor& residual, OptionalInt dims,
                   Strides strides) {
  const Tensor rng_state = given_state && given_state->defined() && p != 0.0 ? savable(*given_state) : Tensor();
  return std::get<0>(recorded(input, bias, residual, {act, act_parameter, p, dims}, [&] {
    return std::tuple(
        call_below(forward_operator(), input, bias, act, act_parameter, p, or_none(rng_state), residual, dims, strides),
        rng_state);
  }));
}

std::tuple<Tensor, Tensor> act_dropout_seeded(const Tensor& input, const OptionalTensor& bias, Name act,
                                              double act_parameter, double p, const OptionalTensor& residual,
                                              OptionalInt dims) {
  return recorded(input, bias, residual, {act, act_parameter, p, dims},
                  [&] { return call_below(seeded_operator(), input, bias, act, act_parameter, p, residual, dims); });
}

}  // namespace
}  // namespace fastreg

TORCH_LIBRARY_IMPL(fastreg, Autograd, m) {
  m.impl("act_dropout", TORCH_FN(fastreg::act_dropout));
  m.impl("act_dropout_seeded", TORCH_FN(fastreg::act_dropout_seeded));
}
