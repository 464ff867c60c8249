// The derivatives of batch norm with what stands next to it, for every backend, as nodes in C++.
// fastreg/ops/batch_norm_act.py has the second derivatives.
//
// What is kept beside the input, the statistics and the parameters: 16 bytes of random state where there is a dropout;
// and where the activation has a derivative to be told, with a residual, the gate (the derivative in a bit per
// element) or else the residual. Without a residual the backward pass computes the activation's input again.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd/node.h"
#include "kernels/common/activation.h"
#include "operators/checks.h"

namespace fastreg {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using Name = std::string_view;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Mask = std::array<bool, 5>;

const auto& train_operator() {
  static const auto op = find_operator<std::tuple<Tensor, Tensor, Tensor>(
      const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
      const OptionalTensor&, std::optional<double>, double, Name, double, const OptionalTensor&, Name, double,
      const OptionalTensor&, bool, double, const OptionalTensor&)>("fastreg::batch_norm_act_train");
  return op;
}
const auto& train_seeded_operator() {
  static const auto op = find_operator<std::tuple<Tensor, Tensor, Tensor, Tensor>(
      const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
      const OptionalTensor&, std::optional<double>, double, Name, double, const OptionalTensor&, Name, double,
      const OptionalTensor&, bool, double)>("fastreg::batch_norm_act_train_seeded");
  return op;
}
const auto& eval_operator() {
  static const auto op = find_operator<std::tuple<Tensor, Tensor>(
      const Tensor&, const OptionalTensor&, const OptionalTensor&, const Tensor&, const Tensor&, double, Name, double,
      const OptionalTensor&, Name, double, const OptionalTensor&, bool, double, const OptionalTensor&)>(
      "fastreg::batch_norm_act_eval");
  return op;
}
const auto& train_backward_operator() {
  static const auto op =
      find_operator<Gradients(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, const Tensor&,
                              Name, double, const OptionalTensor&, const OptionalTensor&, Name, double,
                              const OptionalTensor&, double, const OptionalTensor&, Mask)>(
          "fastreg::batch_norm_act_train_backward");
  return op;
}
const auto& eval_backward_operator() {
  static const auto op =
      find_operator<Gradients(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, const Tensor&,
                              const Tensor&, double, Name, double, const OptionalTensor&, const OptionalTensor&, Name,
                              double, const OptionalTensor&, double, const OptionalTensor&, Mask)>(
          "fastreg::batch_norm_act_eval_backward");
  return op;
}

// What the operators are told beside tensors and statistics.
struct Fused {
  Name pre_act;
  double pre_act_parameter;
  Name act;
  double act_parameter, p;

  ActivationKind kind() const { return activation_named(act).value_or(ActivationKind::identity); }
};

// What an operator returns and used. stats: where it computed them; rng_state: where there is a dropout.
struct Results {
  Tensor output, stats, gate, rng_state;
};

// The statistics of evaluation.
struct Running {
  Tensor mean, var;
  double eps = 0.0;
};

struct BatchNormActNode : torch::autograd::Function<BatchNormActNode> {
  static constexpr bool is_traceable = true;

  // compute(save_gate) -> Results, below autograd; *results receives them.
  template <class Compute>
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& residual, const OptionalTensor& act_weight,
                        const Fused& fused, const Running& running, const Compute& compute, Results* results) {
    const bool gated = residual && is_gated(fused.kind());
    const bool needs_z = !gated && fused.kind() != ActivationKind::identity;
    *results = compute(gated);
    const bool training = results->stats.defined();
    ctx->save_for_backward({input, weight.value_or(Tensor()), needs_z ? bias.value_or(Tensor()) : Tensor(),
                            training ? results->stats : running.mean, running.var,
                            needs_z ? residual.value_or(Tensor()) : Tensor(), gated ? results->gate : Tensor(),
                            results->rng_state, act_weight.value_or(Tensor())});
    auto& saved = ctx->saved_data;
    saved["pre_act"] = std::string(fused.pre_act);
    saved["pre_act_parameter"] = fused.pre_act_parameter;
    saved["act"] = std::string(fused.act);
    saved["act_parameter"] = fused.act_parameter;
    saved["p"] = fused.p;
    saved["bias"] = bias.has_value();
    saved["residual"] = residual.has_value();
    if (!training) saved["eps"] = running.eps;
    return results->output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_output) {
    const auto& saved = ctx->saved_data;
    const variable_list variables = saved.count("eps") ? saved_in_evaluation(ctx) : ctx->get_saved_variables();
    const Tensor &input = variables[0], &first_statistic = variables[3], &running_var = variables[4];
    const OptionalTensor weight = or_none(variables[1]), bias = or_none(variables[2]), residual = or_none(variables[5]),
                         gate = or_none(variables[6]), rng_state = or_none(variables[7]),
                         act_weight = or_none(variables[8]);
    const Fused fused = {saved.at("pre_act").toStringView(), saved.at("pre_act_parameter").toDouble(),
                         saved.at("act").toStringView(), saved.at("act_parameter").toDouble(),
                         saved.at("p").toDouble()};

    // Of input, weight, bias, residual and act_weight, those that autograd asks for. Arguments that are None are not
    // counted.
    Mask wanted = {ctx->needs_input_grad(0), false, false, false, false};
    size_t edge = 1;
    const bool given[] = {true, weight.has_value(), saved.at("bias").toBool(), saved.at("residual").toBool(),
                          act_weight.has_value()};
    for (size_t i = 1; i < wanted.size(); ++i)
      if (given[i]) wanted[i] = ctx->needs_input_grad(edge++);

    variable_list all(9);
    if (wanted[3] && fused.kind() == ActivationKind::identity && fused.p == 0.0) {
      all[3] = grad_output[0];
      wanted[3] = false;
    }
    if (wanted == Mask{}) return all;
    const Gradients gradients =
        saved.count("eps")
            ? call_in_backward(eval_backward_operator(), grad_output[0], input, weight, bias, first_statistic,
                               running_var, saved.at("eps").toDouble(), fused.pre_act, fused.pre_act_parameter,
                               residual, gate, fused.act, fused.act_parameter, act_weight, fused.p, rng_state, wanted)
            : call_in_backward(train_backward_operator(), grad_output[0], input, weight, bias, first_statistic,
                               fused.pre_act, fused.pre_act_parameter, residual, gate, fused.act, fused.act_parameter,
                               act_weight, fused.p, rng_state, wanted);
    if (wanted[0]) all[0] = std::get<0>(gradients);
    if (wanted[1]) all[1] = std::get<1>(gradients);
    if (wanted[2]) all[2] = std::get<2>(gradients);
    if (wanted[3]) all[3] = std::get<3>(gradients);
    if (wanted[4]) all[4] = std::get<4>(gradients);
    return all;
  }
};

// compute(save_gate) -> Results, recorded where autograd has to.
template <class Compute>
Results recorded(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                 const OptionalTensor& running_mean, const OptionalTensor& running_var, const OptionalTensor& residual,
                 const OptionalTensor& act_weight, const Fused& fused, double eps, bool training, bool save_gate,
                 const Compute& compute) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !has_tangent(input) && !has_tangent(weight) && !has_tangent(bias) && !has_tangent(residual) &&
          !has_tangent(act_weight),
      "batch_norm_act: arguments must not have tangents, got one: use the function of this name");
  if (!at::GradMode::is_enabled()) return compute(save_gate);
  check_not_differentiable("batch_norm_act", "running_mean", running_mean);
  check_not_differentiable("batch_norm_act", "running_var", running_var);
  if (!(input.requires_grad() || requires_grad(weight) || requires_grad(bias) || requires_grad(residual) ||
        requires_grad(act_weight)))
    return compute(save_gate);
  const Running running = training ? Running{} : Running{*running_mean, *running_var, eps};
  Results results;
  results.output = BatchNormActNode::apply(
      input, weight, bias, residual, act_weight, fused, running,
      [&](bool gated) { return compute(save_gate || gated); }, &results);
  return results;
}

// The rng_state that an operator is given, in a form that can be saved.
OptionalTensor used(const OptionalTensor& rng_state, double p) {
  return rng_state && rng_state->defined() && p != 0.0 ? OptionalTensor(savable(*rng_state)) : std::nullopt;
}

std::tuple<Tensor, Tensor, Tensor> train(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                         const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                         const OptionalTensor& num_batches_tracked, std::optional<double> momentum,
                                         double eps, Name pre_act, double pre_act_parameter,
                                         const OptionalTensor& residual, Name act, double act_parameter,
                                         const OptionalTensor& act_weight, bool save_gate, double p,
                                         const OptionalTensor& given_state) {
  const OptionalTensor rng_state = used(given_state, p);
  const Results r = recorded(input, weight, bias, running_mean, running_var, residual, act_weight,
                             {pre_act, pre_act_parameter, act, act_parameter, p}, eps, true, save_gate, [&](bool gate) {
                               auto [output, stats, saved] =
                                   call_below(train_operator(), input, weight, bias, running_mean, running_var,
                                              num_batches_tracked, momentum, eps, pre_act, pre_act_parameter, residual,
                                              act, act_parameter, act_weight, gate, p, rng_state);
                               return Results{output, stats, saved, rng_state.value_or(Tensor())};
                             });
  return {r.output, r.stats, r.gate};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> train_seeded(
    const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked, std::optional<double> momentum,
    double eps, Name pre_act, double pre_act_parameter, const OptionalTensor& residual, Name act, double act_parameter,
    const OptionalTensor& act_weight, bool save_gate, double p) {
  const Results r = recorded(input, weight, bias, running_mean, running_var, residual, act_weight,
                             {pre_act, pre_act_parameter, act, act_parameter, p}, eps, true, save_gate, [&](bool gate) {
                               auto [output, stats, saved, rng_state] =
                                   call_below(train_seeded_operator(), input, weight, bias, running_mean, running_var,
                                              num_batches_tracked, momentum, eps, pre_act, pre_act_parameter, residual,
                                              act, act_parameter, act_weight, gate, p);
                               return Results{output, stats, saved, rng_state};
                             });
  return {r.output, r.stats, r.gate, r.rng_state};
}

std::tuple<Tensor, Tensor> eval(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                const Tensor& running_mean, const Tensor& running_var, double eps, Name pre_act,
                                double pre_act_parameter, const OptionalTensor& residual, Name act,
                                double act_parameter, const OptionalTensor& act_weight, bool save_gate, double p,
                                const OptionalTensor& given_state) {
  const OptionalTensor rng_state = used(given_state, p);
  const Results r =
      recorded(input, weight, bias, running_mean, running_var, residual, act_weight,
               {pre_act, pre_act_parameter, act, act_parameter, p}, eps, false, save_gate, [&](bool gate) {
                 auto [output, saved] =
                     call_below(eval_operator(), input, weight, bias, running_mean, running_var, eps, pre_act,
                                pre_act_parameter, residual, act, act_parameter, act_weight, gate, p, rng_state);
                 return Results{output, {}, saved, rng_state.value_or(Tensor())};
               });
  return {r.output, r.gate};
}

}  // namespace
}  // namespace fastreg

TORCH_LIBRARY_IMPL(fastreg, Autograd, m) {
  m.impl("batch_norm_act_train", TORCH_FN(fastreg::train));
  m.impl("batch_norm_act_train_seeded", TORCH_FN(fastreg::train_seeded));
  m.impl("batch_norm_act_eval", TORCH_FN(fastreg::eval));
}
