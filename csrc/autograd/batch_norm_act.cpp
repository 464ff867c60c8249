// The derivatives of batch norm with what stands next to it, for every backend, as nodes in C++.
// fastreg/autograd/batch_norm_act.py has the second derivatives.
//
// What is kept beside the input, the statistics and the parameters: 16 bytes of random state where there is a dropout;
// and where the activation has a derivative to be told, with a residual, the gate (the derivative in a bit per
// element) or else the residual. Without a residual the backward pass computes the activation's input again.
#include <torch/library.h>

#include "autograd/node.h"
#include "kernels/common/activation.h"
#include "operators/checks.h"

namespace fastreg {
namespace {

using at::Tensor;
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
};

// What an operator returns and used. stats: where it computed them; rng_state: where there is a dropout.
struct Results {
  Tensor output, stats, gate, rng_state;
};

// Of input, weight, bias, residual and act_weight.
struct BatchNormActBackward : Derivative<5, 9> {
  static constexpr const char* kName = "fastreg::BatchNormActBackward";
  static constexpr size_t kResidual = 3;

  int64_t pre_act = 0, act = 0;
  double pre_act_parameter = 0.0, act_parameter = 0.0, p = 0.0;
  std::optional<double> eps;  // where the statistics are running_mean and running_var

  template <class Self, class F>
  static void for_each_field(Self& self, F&& f) {
    f(self.pre_act), f(self.act), f(self.pre_act_parameter), f(self.act_parameter), f(self.p), f(self.eps);
  }

  Gradients operator()(const Tensor& grad_output, const Saved& saved, const Wanted& wanted) const {
    const auto& [input, weight, bias, statistic, running_var, residual, gate, rng_state, act_weight] = saved;
    const Name pre_name = kActivationNames[pre_act], name = kActivationNames[act];
    Mask mask = wanted;
    const bool is_residuals = mask[kResidual] && ActivationKind(act) == ActivationKind::identity && p == 0.0;
    if (is_residuals) mask[kResidual] = false;
    Gradients all;
    if (mask != Mask{})
      all = in_array(
          eps ? call_in_backward(eval_backward_operator(), grad_output, input, or_none(weight), or_none(bias),
                                 statistic, running_var, *eps, pre_name, pre_act_parameter, or_none(residual),
                                 or_none(gate), name, act_parameter, or_none(act_weight), p, or_none(rng_state), mask)
              : call_in_backward(train_backward_operator(), grad_output, input, or_none(weight), or_none(bias),
                                 statistic, pre_name, pre_act_parameter, or_none(residual), or_none(gate), name,
                                 act_parameter, or_none(act_weight), p, or_none(rng_state), mask));
    if (is_residuals) all[kResidual] = grad_output;
    return all;
  }
  void explain(c10::Error& error) const {
    if (eps) explain_running_statistics(error);
  }
};

// compute(save_gate) -> Results, recorded where autograd has to. eps: of evaluation.
template <class Compute>
Results recorded(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                 const OptionalTensor& running_mean, const OptionalTensor& running_var, const OptionalTensor& residual,
                 const OptionalTensor& act_weight, const Fused& fused, std::optional<double> eps, bool save_gate,
                 const Compute& compute) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !has_tangent(input) && !has_tangent(weight) && !has_tangent(bias) && !has_tangent(residual) &&
          !has_tangent(act_weight),
      "batch_norm_act: arguments must not have tangents, got one: use the function of this name");
  if (!at::GradMode::is_enabled()) return compute(save_gate);
  check_not_differentiable("batch_norm_act", "running_mean", running_mean);
  check_not_differentiable("batch_norm_act", "running_var", running_var);
  if (!is_recorded(input, weight, bias, residual, act_weight)) return compute(save_gate);

  const ActivationKind act = activation_named(fused.act).value_or(ActivationKind::identity),
                       pre_act = activation_named(fused.pre_act).value_or(ActivationKind::identity);
  const bool gated = residual && is_gated(act), needs_z = !gated && act != ActivationKind::identity;
  const Results r = compute(save_gate || gated);
  const auto kept = [](bool condition, const OptionalTensor& t) { return condition && t ? *t : Tensor(); };
  record(r.output,
         BatchNormActBackward{
             {}, int64_t(pre_act), int64_t(act), fused.pre_act_parameter, fused.act_parameter, fused.p, eps},
         {input, kept(true, weight), kept(needs_z, bias), eps ? *running_mean : r.stats,
          kept(eps.has_value(), running_var), kept(needs_z, residual), kept(gated, r.gate), r.rng_state,
          kept(true, act_weight)},
         input, weight, bias, residual, act_weight);
  return r;
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
  const Results r =
      recorded(input, weight, bias, running_mean, running_var, residual, act_weight,
               {pre_act, pre_act_parameter, act, act_parameter, p}, std::nullopt, save_gate, [&](bool gate) {
                 auto [output, stats, saved] = call_below(
                     train_operator(), input, weight, bias, running_mean, running_var, num_batches_tracked, momentum,
                     eps, pre_act, pre_act_parameter, residual, act, act_parameter, act_weight, gate, p, rng_state);
                 return Results{output, stats, saved, rng_state.value_or(Tensor())};
               });
  return {r.output, r.stats, r.gate};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> train_seeded(
    const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked, std::optional<double> momentum,
    double eps, Name pre_act, double pre_act_parameter, const OptionalTensor& residual, Name act, double act_parameter,
    const OptionalTensor& act_weight, bool save_gate, double p) {
  const Results r =
      recorded(input, weight, bias, running_mean, running_var, residual, act_weight,
               {pre_act, pre_act_parameter, act, act_parameter, p}, std::nullopt, save_gate, [&](bool gate) {
                 auto [output, stats, saved, rng_state] = call_below(
                     train_seeded_operator(), input, weight, bias, running_mean, running_var, num_batches_tracked,
                     momentum, eps, pre_act, pre_act_parameter, residual, act, act_parameter, act_weight, gate, p);
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
  const Results r = recorded(input, weight, bias, running_mean, running_var, residual, act_weight,
                             {pre_act, pre_act_parameter, act, act_parameter, p}, eps, save_gate, [&](bool gate) {
                               auto [output, saved] = call_below(eval_operator(), input, weight, bias, running_mean,
                                                                 running_var, eps, pre_act, pre_act_parameter, residual,
                                                                 act, act_parameter, act_weight, gate, p, rng_state);
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
