// The derivatives of dropout with what stands next to it, for every backend, as nodes in C++.
// fastreg/autograd/act_dropout.py has the second derivatives.
//
// What is kept: the input, the bias, and 16 bytes of random state; with the identity, whose derivative is dropout's
// own, the state alone.
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include <numeric>

#include "autograd/node.h"
#include "kernels/common/activation.h"

namespace fastreg {
namespace {

using at::Tensor;
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

struct ActDropoutBackward : Derivative<3, 3> {
  static constexpr const char* kName = "fastreg::ActDropoutBackward";
  enum Input { kInput, kBias, kResidual };
  enum Kept { kRngState, kGivenInput, kGivenBias };

  int64_t act = 0;
  double act_parameter = 0.0, p = 0.0;
  OptionalInt dims;
  std::vector<c10::SymInt> strides;  // of the output

  template <class Self, class F>
  static void for_each_field(Self& self, F&& f) {
    f(self.act), f(self.act_parameter), f(self.p), f(self.dims), f(self.strides);
  }

  Gradients operator()(const Tensor& grad_output, const Saved& saved, const Wanted& wanted) const {
    Gradients all;
    if (wanted[kResidual]) all[kResidual] = grad_output;
    if (!wanted[kInput] && !wanted[kBias]) return all;
    all[kInput] = gradient_of_input(grad_output, saved);
    if (wanted[kBias]) all[kBias] = sum_over_rows(all[kInput]);
    return all;
  }

 private:
  Tensor gradient_of_input(const Tensor& grad_output, const Saved& saved) const {
    const Tensor& rng_state = saved[kRngState];
    if (saved[kGivenInput].defined())
      return call_in_backward(backward_operator(), grad_output, saved[kGivenInput], or_none(saved[kGivenBias]),
                              kActivationNames[act], act_parameter, p, or_none(rng_state), dims, strides);
    if (p == 0.0) return grad_output;
    if (dims)
      return call_in_backward(feature_dropout_operator(), grad_output, *dims, p, rng_state, std::nullopt, std::nullopt,
                              OptionalTensor());
    return call_in_backward(dropout_operator(), grad_output, p, rng_state, Strides(strides), std::nullopt,
                            std::nullopt);
  }
  static Tensor sum_over_rows(const Tensor& gradient) {
    std::vector<int64_t> leading(size_t(gradient.dim() - 1));
    std::iota(leading.begin(), leading.end(), 0);
    return leading.empty() ? gradient : at::sum(gradient, leading);
  }
};

struct Arguments {
  Name act;
  double act_parameter, p;
  OptionalInt dims;
};

// compute() -> (output, the rng_state that was used), below autograd.
template <class Compute>
std::tuple<Tensor, Tensor> recorded(const Tensor& input, const OptionalTensor& bias, const OptionalTensor& residual,
                                    const Arguments& a, const Compute& compute) {
  TORCH_CHECK_NOT_IMPLEMENTED(!has_tangent(input) && !has_tangent(bias) && !has_tangent(residual),
                              "act_dropout: arguments must not have tangents, got one: use the function of this name");
  auto [output, used] = compute();
  if (is_recorded(input, bias, residual)) {
    const auto kind = activation_named(a.act).value_or(ActivationKind::identity);
    ActDropoutBackward::Saved saved = {used};
    if (kind != ActivationKind::identity) {
      saved[ActDropoutBackward::kGivenInput] = input;
      if (bias) saved[ActDropoutBackward::kGivenBias] = *bias;
    }
    record(output, ActDropoutBackward{{}, int64_t(kind), a.act_parameter, a.p, a.dims, output.sym_strides().vec()},
           saved, input, bias, residual);
  }
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
