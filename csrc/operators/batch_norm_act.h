// The operators of batch norm with what stands next to it, for any backend: argument checks, layouts, allocation.
//
//   y = dropout(act(batch_norm(pre_act(x)) + residual)), rounded once
//
// A Backend provides, for tensors in the one ChannelLayout, none of them empty,
//   Dropout                           the backend of dropout: see csrc/operators/dropout.h
//   train(layout, x, y, affine, statistics, running, fusion)
//   eval(layout, x, y, affine, statistics, fusion)
//   backward(layout, dy, x, affine, statistics, fusion, gradients)
//
// What depends on z, the argument of act, backward takes from the gate or else from z itself, computed again from x
// and the residual by the same expression as in forward. With a gate neither affine.bias nor the residual is needed,
// nor are they with the identity: they may then be undefined although forward had them.
#pragma once

#include "operators/batch_norm.h"
#include "operators/dropout.h"
#include "operators/fused_arguments.h"

namespace fastreg {

template <class State>
struct Fusion {
  Activation pre_act, act;
  at::Tensor act_weight;    // act's slope, of one element or one per channel, or undefined
  at::Tensor residual;      // in x's layout, or undefined
  at::Tensor gate;          // uint8[gate_bytes], written in forward and read in backward, or undefined
  bool drops;               // whether there is a dropout:
  DropoutCall<State> drop;  // elements are numbered in memory order
};

struct FusedGradients : Gradients {
  at::Tensor residual, act_weight;
};

template <class Backend>
class BatchNormActOperators {
  using Tensor = at::Tensor;
  using OptionalTensor = std::optional<at::Tensor>;
  using Name = std::string_view;
  using Dropout = typename Backend::Dropout;
  static constexpr const char* op = "batch_norm_act";

  // One call of an operator: its operands as the kernels take them, and what is done to them beside batch norm.
  struct Operation {
    Operation(const Tensor& input, Activation pre_act, const OptionalTensor& residual, Activation act,
              const OptionalTensor& act_weight, double p)
        : drop(op, input, p, input.numel(), std::nullopt, std::nullopt), input(input), x(in_normalized_layout(input)) {
      fusion.pre_act = pre_act;
      fusion.act = act;
      fusion.act_weight = checked_act_weight(op, act, act_weight, input);
      fusion.drop = drop.call;
      if (residual && residual->defined()) {
        check_residual(op, *residual, input);
        fusion.residual = with_layout_of(*residual, x);
      }
      fusion.drops = p != 0.0;
    }

    void use(const OptionalTensor& rng_state) {
      if (!fusion.drops) return;
      drop.use(checked_given(op, rng_state));
      fusion.drop = drop.call;
    }
    Tensor draw() {
      Tensor rng_state = drop.draw();
      fusion.drop = drop.call;
      return rng_state;
    }

    Tensor new_gate(bool wanted) {
      wanted &= fusion.residual.defined() && is_gated(fusion.act.kind);
      const Tensor gate = at::empty({wanted ? bytes_of_gate() : 0}, x.options().dtype(at::kByte));
      if (wanted) fusion.gate = gate;
      return gate;
    }
    void use_gate(const OptionalTensor& gate) {
      if (!gate || !gate->defined()) return;
      TORCH_CHECK(is_gated(fusion.act.kind), op, ": gate must be None with this act, got a tensor");
      TORCH_CHECK(gate->scalar_type() == at::kByte && gate->dim() == 1 && gate->size(0) == bytes_of_gate() &&
                      gate->is_contiguous() && gate->device() == x.device(),
                  op, ": gate must be a contiguous uint8 tensor of shape [", bytes_of_gate(), "] on ", x.device(),
                  ", got ", gate->scalar_type(), " ", gate->sizes(), " on ", gate->device());
      fusion.gate = *gate;
    }
    int64_t bytes_of_gate() const { return gate_bytes(x.numel()); }

    Drop<Dropout> drop;  // makes the device current
    const Tensor input, x;
    Fusion<typename Dropout::State> fusion{};
  };

  // Forward in training: the results, and the random state that `random` gives the operation.
  template <class F>
  static std::tuple<Tensor, Tensor, Tensor> train_with(
      const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& running_mean,
      const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked, std::optional<double> momentum,
      double eps, Name pre_act, double pre_act_parameter, const OptionalTensor& residual, Name act,
      double act_parameter, const OptionalTensor& act_weight, bool save_gate, double p, F&& random) {
    const Affine affine = checked_affine(op, input, weight, bias);
    const Running running =
        checked_running(op, input, affine, running_mean, running_var, num_batches_tracked, momentum);
    check_written_apart(op, running, "residual", or_undefined(residual));
    check_written_apart(op, running, "act_weight", or_undefined(act_weight));
    Operation operation(input, checked_activation(op, "pre_act", pre_act, pre_act_parameter), residual,
                        checked_activation(op, "act", act, act_parameter, true), act_weight, p);
    random(operation);
    const Tensor& x = operation.x;
    const Tensor y = empty_normalized_like(input), gate = operation.new_gate(save_gate);
    const Tensor stats = new_stats(x, running, [&](const Tensor& written) {
      Backend::train(*channel_layout(x), x, y, affine, {written, {}, {}, eps}, running, operation.fusion);
    });
    return {y, stats, gate};
  }

  static std::tuple<Tensor, Tensor, Tensor> train(const Tensor& input, const OptionalTensor& weight,
                                                  const OptionalTensor& bias, const OptionalTensor& running_mean,
                                                  const OptionalTensor& running_var,
                                                  const OptionalTensor& num_batches_tracked,
                                                  std::optional<double> momentum, double eps, Name pre_act,
                                                  double pre_act_parameter, const OptionalTensor& residual, Name act,
                                                  double act_parameter, const OptionalTensor& act_weight,
                                                  bool save_gate, double p, const OptionalTensor& rng_state) {
    return train_with(input, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps, pre_act,
                      pre_act_parameter, residual, act, act_parameter, act_weight, save_gate, p,
                      [&](Operation& operation) { operation.use(rng_state); });
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> train_seeded(
      const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& running_mean,
      const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked, std::optional<double> momentum,
      double eps, Name pre_act, double pre_act_parameter, const OptionalTensor& residual, Name act,
      double act_parameter, const OptionalTensor& act_weight, bool save_gate, double p) {
    Tensor rng_state;
    auto [output, stats, gate] =
        train_with(input, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps, pre_act,
                   pre_act_parameter, residual, act, act_parameter, act_weight, save_gate, p,
                   [&](Operation& operation) { rng_state = operation.draw(); });
    return {output, stats, gate, rng_state};
  }

  static std::tuple<Tensor, Tensor> eval(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                         const Tensor& running_mean, const Tensor& running_var, double eps,
                                         Name pre_act, double pre_act_parameter, const OptionalTensor& residual,
                                         Name act, double act_parameter, const OptionalTensor& act_weight,
                                         bool save_gate, double p, const OptionalTensor& rng_state) {
    const Affine affine = checked_affine(op, input, weight, bias);
    const Statistics statistics = checked_statistics(op, input, running_mean, running_var, eps);
    Operation operation(input, checked_activation(op, "pre_act", pre_act, pre_act_parameter), residual,
                        checked_activation(op, "act", act, act_parameter, true), act_weight, p);
    operation.use(rng_state);
    const Tensor& x = operation.x;
    const Tensor y = empty_normalized_like(input), gate = operation.new_gate(save_gate);
    if (x.numel() > 0) Backend::eval(*channel_layout(x), x, y, affine, statistics, operation.fusion);
    return {y, gate};
  }

  using FiveTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

  static FiveTensors train_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight,
                                    const OptionalTensor& bias, const Tensor& stats, Name pre_act,
                                    double pre_act_parameter, const OptionalTensor& residual,
                                    const OptionalTensor& gate, Name act, double act_parameter,
                                    const OptionalTensor& act_weight, double p, const OptionalTensor& rng_state,
                                    std::array<bool, 5> output_mask) {
    check_batch_norm_input(op, input);
    check_stats(stats, input, compute_dtype(input.scalar_type()));
    Operation operation(input, checked_activation(op, "pre_act", pre_act, pre_act_parameter), residual,
                        checked_activation(op, "act", act, act_parameter, true), act_weight, p);
    operation.use(rng_state);
    operation.use_gate(gate);
    return backward(grad_output, weight, bias, {stats, {}, {}, 0.0}, operation, output_mask);
  }

  static FiveTensors eval_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight,
                                   const OptionalTensor& bias, const Tensor& running_mean, const Tensor& running_var,
                                   double eps, Name pre_act, double pre_act_parameter, const OptionalTensor& residual,
                                   const OptionalTensor& gate, Name act, double act_parameter,
                                   const OptionalTensor& act_weight, double p, const OptionalTensor& rng_state,
                                   std::array<bool, 5> output_mask) {
    check_batch_norm_input(op, input);
    const Statistics statistics = checked_statistics(op, input, running_mean, running_var, eps);
    Operation operation(input, checked_activation(op, "pre_act", pre_act, pre_act_parameter), residual,
                        checked_activation(op, "act", act, act_parameter, true), act_weight, p);
    operation.use(rng_state);
    operation.use_gate(gate);
    return backward(grad_output, weight, bias, statistics, operation, output_mask);
  }

  static FiveTensors backward(const Tensor& grad_output, const OptionalTensor& weight, const OptionalTensor& bias,
                              const Statistics& statistics, const Operation& operation,
                              std::array<bool, 5> output_mask) {
    const Tensor &input = operation.input, &x = operation.x;
    check_grad_output(op, grad_output, input);
    const Affine affine = checked_affine(op, input, weight, bias);
    FusedGradients gradients = {
        new_gradients(input, affine.weight, output_mask[0], output_mask[1], output_mask[2]), {}, {}};
    if (output_mask[3]) gradients.residual = empty_normalized_like(input);
    const Tensor& act_weight = operation.fusion.act_weight;
    if (output_mask[4] && act_weight.defined()) {
      gradients.act_weight = at::empty(act_weight.sizes(), act_weight.options());
      if (x.numel() == 0) gradients.act_weight.zero_();
    }
    if (x.numel() > 0)
      Backend::backward(*channel_layout(x), with_layout_of(grad_output, x), x, affine, statistics, operation.fusion,
                        gradients);
    return {or_empty(gradients.input, x), or_empty(gradients.weight, x), or_empty(gradients.bias, x),
            or_empty(gradients.residual, x), or_empty(gradients.act_weight, x)};
  }

 public:
  static void register_in(torch::Library& m) {
    m.impl("batch_norm_act_train", TORCH_FN(train));
    m.impl("batch_norm_act_train_seeded", TORCH_FN(train_seeded));
    m.impl("batch_norm_act_eval", TORCH_FN(eval));
    m.impl("batch_norm_act_train_backward", TORCH_FN(train_backward));
    m.impl("batch_norm_act_eval_backward", TORCH_FN(eval_backward));
  }
};

}  // namespace fastreg
