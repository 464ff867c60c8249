// The operators of dropout with what stands next to it, for any backend: argument checks, memory order, allocation.
//
//   y = dropout(act(x + bias)) + residual, rounded once
//
// A Backend provides, for tensors that are dense, in the same memory order, and not empty,
//   Dropout                the backend of dropout: see csrc/operators/dropout.h
//   forward(x, y, call)
//   backward(dy, x, dx, call)    dx = dropout(dy) act'(x + bias); call.residual is undefined
// with a call: ActDropoutCall<Dropout::State>.
#pragma once

#include <ATen/ops/add.h>

#include "operators/dropout.h"
#include "operators/fused_arguments.h"

namespace fastreg {

template <class State>
struct ActDropoutCall {
  at::Tensor bias;  // contiguous, of x's dtype, added to element j at bias[j mod its size]; or undefined
  Activation act;
  at::Tensor residual;                 // or undefined
  bool drops;                          // whether there is a dropout:
  DropoutCall<State> drop;             // what becomes of an element is its transform;
  std::optional<FeatureMap> features;  // none: elements draw each for itself, numbered in memory order
};

template <class Backend>
class ActDropoutOperators {
  using Tensor = at::Tensor;
  using OptionalTensor = std::optional<at::Tensor>;
  using Name = std::string_view;
  using Dropout = typename Backend::Dropout;
  static constexpr const char* op = "act_dropout";

  // One call of an operator: its operands in a memory order that the kernels know.
  struct Operation {
    Operation(const Tensor& input, const OptionalTensor& bias, Name act, double act_parameter, double p,
              const OptionalTensor& residual, std::optional<int64_t> dims, at::OptionalIntArrayRef strides)
        : drop(op, input, p, draws_of(op, input, dims), std::nullopt, std::nullopt),
          input(input),
          numbered(numbered_output(op, input, strides)),
          like(!dims || feature_map(numbered, *dims) ? numbered : at::empty_like(input, at::MemoryFormat::Contiguous)) {
      call.act = checked_activation(op, "act", act, act_parameter);
      call.drops = p != 0.0;
      call.drop = drop.call;
      if (dims) call.features = feature_map(like, *dims);
      x = with_layout_of(input, like);
      if (bias && bias->defined()) add(*bias);
      if (residual && residual->defined()) {
        check_residual(op, *residual, input);
        call.residual = with_layout_of(*residual, like);
      }
    }

    void use(const OptionalTensor& rng_state) {
      if (!call.drops) return;
      drop.use(checked_given(op, rng_state));
      call.drop = drop.call;
    }
    Tensor draw() {
      Tensor rng_state = drop.draw();
      call.drop = drop.call;
      return rng_state;
    }

    void add(const Tensor& bias) {
      TORCH_CHECK(input.dim() > 0 && bias.dim() == 1 && bias.size(0) == input.size(-1), op,
                  ": bias must have the size of input's last dimension, input has ", input.sizes(), ", got ",
                  bias.sizes());
      TORCH_CHECK(bias.scalar_type() == input.scalar_type() && bias.device() == input.device(), op, ": bias must be ",
                  input.scalar_type(), " on ", input.device(), " as the input, got ", bias.scalar_type(), " on ",
                  bias.device());
      if (bias.size(0) == 1 || x.stride(-1) == 1) {
        call.bias = bias.contiguous();
      } else {
        x = at::add(x, bias);  // keeps x's memory order
      }
    }

    Tensor forward() {
      if (input.numel() > 0) Backend::forward(x, like, call);
      return result();
    }
    Tensor backward(const Tensor& grad_output) {
      check_grad_output(op, grad_output, input);
      if (input.numel() > 0) Backend::backward(with_layout_of(grad_output, like), x, like, call);
      return result();
    }
    Tensor result() const { return like.is_same(numbered) ? numbered : numbered.copy_(like); }

    Drop<Dropout> drop;  // makes the device current
    // What the operator returns, and what the kernels write to: the same, or in another memory order.
    const Tensor input, numbered, like;
    Tensor x;
    ActDropoutCall<typename Dropout::State> call{};
  };

  static Tensor act_dropout(const Tensor& input, const OptionalTensor& bias, Name act, double act_parameter, double p,
                            const OptionalTensor& rng_state, const OptionalTensor& residual,
                            std::optional<int64_t> dims, at::OptionalIntArrayRef strides) {
    Operation operation(input, bias, act, act_parameter, p, residual, dims, strides);
    operation.use(rng_state);
    return operation.forward();
  }

  static std::tuple<Tensor, Tensor> act_dropout_seeded(const Tensor& input, const OptionalTensor& bias, Name act,
                                                       double act_parameter, double p, const OptionalTensor& residual,
                                                       std::optional<int64_t> dims) {
    Operation operation(input, bias, act, act_parameter, p, residual, dims, std::nullopt);
    Tensor rng_state = operation.draw();
    return {operation.forward(), rng_state};
  }

  static Tensor act_dropout_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& bias,
                                     Name act, double act_parameter, double p, const OptionalTensor& rng_state,
                                     std::optional<int64_t> dims, at::IntArrayRef strides) {
    Operation operation(input, bias, act, act_parameter, p, std::nullopt, dims, strides);
    operation.use(rng_state);
    return operation.backward(grad_output);
  }

 public:
  static void register_in(torch::Library& m) {
    m.impl("act_dropout", TORCH_FN(act_dropout));
    m.impl("act_dropout_seeded", TORCH_FN(act_dropout_seeded));
    m.impl("act_dropout_backward", TORCH_FN(act_dropout_backward));
  }
};

}  // namespace fastreg
