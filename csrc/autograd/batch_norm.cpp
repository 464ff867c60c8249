// The derivatives of batch norm, for every backend, as nodes in C++: in small calls the overhead is the cost.
// fastreg/autograd/batch_norm.py has the formulas of the second derivatives.
#include <torch/library.h>

#include "autograd/node.h"
#include "operators/checks.h"

namespace fastreg {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

const auto& train_operator() {
  static const auto op = find_operator<std::tuple<Tensor, Tensor>(
      const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
      const OptionalTensor&, std::optional<double>, double)>("fastreg::batch_norm_train");
  return op;
}
const auto& eval_operator() {
  static const auto op = find_operator<Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                              const Tensor&, const Tensor&, double)>("fastreg::batch_norm_eval");
  return op;
}
const auto& train_backward_operator() {
  static const auto op =
      find_operator<Gradients(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&, std::array<bool, 3>)>(
          "fastreg::batch_norm_train_backward");
  return op;
}
const auto& eval_backward_operator() {
  static const auto op =
      find_operator<Gradients(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&, const Tensor&, double,
                              std::array<bool, 3>)>("fastreg::batch_norm_eval_backward");
  return op;
}

// Of input, weight and bias.
struct TrainBackward : Derivative<3, 3> {
  static constexpr const char* kName = "fastreg::BatchNormBackward";

  template <class Self, class F>
  static void for_each_field(Self&, F&&) {}

  Gradients operator()(const Tensor& grad_output, const Saved& saved, const Wanted& wanted) const {
    const auto& [input, weight, stats] = saved;
    return in_array(call_in_backward(train_backward_operator(), grad_output, input, or_none(weight), stats, wanted));
  }
};

struct EvalBackward : Derivative<3, 4> {
  static constexpr const char* kName = "fastreg::BatchNormEvalBackward";
  double eps = 0.0;

  template <class Self, class F>
  static void for_each_field(Self& self, F&& f) {
    f(self.eps);
  }

  Gradients operator()(const Tensor& grad_output, const Saved& saved, const Wanted& wanted) const {
    const auto& [input, weight, running_mean, running_var] = saved;
    return in_array(call_in_backward(eval_backward_operator(), grad_output, input, or_none(weight), running_mean,
                                     running_var, eps, wanted));
  }
  void explain(c10::Error& error) const { explain_running_statistics(error); }
};

void check_constant(const OptionalTensor& running_mean, const OptionalTensor& running_var) {
  TORCH_CHECK(!has_tangent(running_mean), "batch_norm: running_mean must not have a tangent, got one");
  TORCH_CHECK(!has_tangent(running_var), "batch_norm: running_var must not have a tangent, got one");
  if (!at::GradMode::is_enabled()) return;
  check_not_differentiable("batch_norm", "running_mean", running_mean);
  check_not_differentiable("batch_norm", "running_var", running_var);
}

// Forward-mode AD: the arguments without their tangents.
struct Primals {
  Primals(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias)
      : dual(has_tangent(input) || has_tangent(weight) || has_tangent(bias)),
        input(dual ? primal(input) : input),
        weight(dual ? primal(weight) : weight),
        bias(dual ? primal(bias) : bias) {}
  bool dual;  // whether there is a tangent
  Tensor input;
  OptionalTensor weight, bias;
};

Tensor per_channel(const Tensor& t, const Tensor& like) {
  std::vector<int64_t> shape(like.dim(), 1);
  shape[1] = -1;
  return t.reshape(shape).to(like.scalar_type());
}

// The output is linear in weight and bias. Its derivative with respect to the input is symmetric, so that it makes of
// the input's tangent what the backward pass makes of a gradient: of_input.
template <class Normalise>
void set_tangent(const Tensor& output, const Tensor& of_input, const OptionalTensor& weight, const OptionalTensor& bias,
                 const Normalise& normalise) {
  Tensor sum = of_input;
  const auto add = [&](const Tensor& term) { sum = sum.defined() ? sum.add(term) : term.expand_as(output); };
  if (has_tangent(weight)) add(normalise().mul(per_channel(tangent(weight), output)));
  if (has_tangent(bias)) add(per_channel(tangent(bias), output));
  output._set_fw_grad(sum, 0, false);
}

constexpr std::array<bool, 3> kOfInput = {true, false, false};

std::tuple<Tensor, Tensor> train(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                 const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                 const OptionalTensor& num_batches_tracked, std::optional<double> momentum,
                                 double eps) {
  check_constant(running_mean, running_var);
  const Primals primals(input, weight, bias);
  const auto& [dual, x, w, b] = primals;
  const auto [output, stats] =
      call_below(train_operator(), x, w, b, running_mean, running_var, num_batches_tracked, momentum, eps);
  // The tensors that were given are kept, with their tangents, where others are differentiated.
  if (is_recorded(x, w, b)) record(output, TrainBackward(), {input, weight.value_or(Tensor()), stats}, x, w, b);
  if (dual) {
    Tensor of_input = tangent(input);
    if (of_input.defined())
      of_input = std::get<0>(call_in_backward(train_backward_operator(), of_input, x, w, stats, kOfInput));
    set_tangent(output, of_input, weight, bias, [&] {
      return std::get<0>(call_in_backward(train_operator(), primals.input, std::nullopt, std::nullopt, std::nullopt,
                                          std::nullopt, std::nullopt, 0.0, eps));
    });
  }
  return {output, stats};
}

Tensor eval(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& running_mean,
            const Tensor& running_var, double eps) {
  check_constant(running_mean, running_var);
  const Primals primals(input, weight, bias);
  const auto& [dual, x, w, b] = primals;
  const Tensor output = call_below(eval_operator(), x, w, b, running_mean, running_var, eps);
  if (is_recorded(x, w, b))
    record(output, EvalBackward{{}, eps}, {input, weight.value_or(Tensor()), running_mean, running_var}, x, w, b);
  if (dual) {
    Tensor of_input = tangent(input);
    if (of_input.defined())
      of_input = std::get<0>(
          call_in_backward(eval_backward_operator(), of_input, x, w, running_mean, running_var, eps, kOfInput));
    set_tangent(output, of_input, weight, bias, [&] {
      return call_in_backward(eval_operator(), primals.input, std::nullopt, std::nullopt, running_mean, running_var,
                              eps);
    });
  }
  return output;
}

void check_not_recorded(const char* op, std::initializer_list<OptionalTensor> tensors) {
  if (!at::GradMode::is_enabled()) return;
  for (const OptionalTensor& t : tensors)
    TORCH_CHECK_NOT_IMPLEMENTED(!requires_grad(t), op,
                                ": arguments must not require grad, got one that does: SyncBatchNorm has derivatives");
}

// The steps of batch norm over several parts: only all of them together have a derivative.
Tensor moments(const Tensor& input) {
  static const auto op = find_operator<Tensor(const Tensor&)>("fastreg::batch_norm_moments");
  check_not_recorded("batch_norm_moments", {input});
  return call_below(op, input);
}
Tensor normalize(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& stats) {
  static const auto op =
      find_operator<Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&, const Tensor&)>(
          "fastreg::batch_norm_normalize");
  check_not_recorded("batch_norm_normalize", {input, weight, bias, stats});
  return call_below(op, input, weight, bias, stats);
}
Tensor grad_input(const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight, const Tensor& stats,
                  const Tensor& grad_means) {
  static const auto op =
      find_operator<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&, const Tensor&)>(
          "fastreg::batch_norm_grad_input");
  check_not_recorded("batch_norm_grad_input", {grad_output, input, weight, stats, grad_means});
  return call_below(op, grad_output, input, weight, stats, grad_means);
}

}  // namespace
}  // namespace fastreg

TORCH_LIBRARY_IMPL(fastreg, Autograd, m) {
  m.impl("batch_norm_moments", TORCH_FN(fastreg::moments));
  m.impl("batch_norm_normalize", TORCH_FN(fastreg::normalize));
  m.impl("batch_norm_grad_input", TORCH_FN(fastreg::grad_input));
  m.impl("batch_norm_train", TORCH_FN(fastreg::train));
  m.impl("batch_norm_eval", TORCH_FN(fastreg::eval));
}
