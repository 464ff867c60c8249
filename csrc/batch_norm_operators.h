// The batch norm operators, for any backend: argument checks, layouts, allocation.
//
// A Backend provides, for tensors x, y, dy, dx in the one ChannelLayout, none of them empty,
//   Guard(input)                      makes input's device current while it lives
//   train(layout, x, y, affine, statistics, running)
//   eval(layout, x, y, affine, statistics)
//   backward(layout, dy, x, weight, statistics, gradients)
#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include "checks.h"
#include "dispatch.h"
#include "layout.h"

namespace fastreg {

// In all of these a tensor may be undefined: not given, or not wanted.
struct Affine {
  at::Tensor weight, bias;
};
struct Running {
  at::Tensor mean, var, num_batches_tracked;
  std::optional<double> momentum;  // none: cumulative average
};
// What a channel was normalised with: stats [3, C] in training, else the running statistics.
struct Statistics {
  at::Tensor stats, running_mean, running_var;
  double eps;
};
struct Gradients {
  at::Tensor input, weight, bias;
};

template <class Backend>
struct BatchNormOperators {
  using Tensor = at::Tensor;
  using OptionalTensor = std::optional<at::Tensor>;
  static constexpr const char* op = "batch_norm";

  static std::tuple<Tensor, Tensor> train(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                          const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                          const OptionalTensor& num_batches_tracked, std::optional<double> momentum,
                                          double eps) {
    const Affine affine = checked_affine(input, weight, bias);
    const Running running = {checked_written("running_mean", running_mean, input),
                             checked_written("running_var", running_var, input), or_undefined(num_batches_tracked),
                             momentum};
    check_momentum(op, momentum, running.num_batches_tracked, input);
    check_written_apart(input, affine, running);

    const typename Backend::Guard guard(input);
    const Tensor x = with_channel_layout(input);
    const ChannelLayout layout = *channel_layout(x);
    Tensor y = at::empty_like(x);
    const auto options = x.options().dtype(compute_dtype(x.scalar_type()));
    Tensor stats;
    if (x.numel() > 0) {
      stats = at::empty({3, layout.channels}, options);
      Backend::train(layout, x, y, affine, {stats, {}, {}, eps}, running);
      for (const Tensor& written : {running.mean, running.var, running.num_batches_tracked})
        if (written.defined()) mark_written(written);
    } else {
      // A batch of nothing has no statistics, and leaves the running ones alone.
      stats = at::full({3, layout.channels}, std::numeric_limits<double>::quiet_NaN(), options);
      if (running.num_batches_tracked.defined()) running.num_batches_tracked.add_(1);
    }
    return {in_order_of(y, input), stats};
  }

  static Tensor eval(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                     const Tensor& running_mean, const Tensor& running_var, double eps) {
    const Affine affine = checked_affine(input, weight, bias);
    check_per_channel(op, "running_mean", running_mean, input);
    check_per_channel(op, "running_var", running_var, input);

    const typename Backend::Guard guard(input);
    const Tensor x = with_channel_layout(input);
    Tensor y = at::empty_like(x);
    if (x.numel() > 0) Backend::eval(*channel_layout(x), x, y, affine, {{}, running_mean, running_var, eps});
    return in_order_of(y, input);
  }

  static std::tuple<Tensor, Tensor, Tensor> train_backward(const Tensor& grad_output, const Tensor& input,
                                                           const OptionalTensor& weight, const Tensor& stats,
                                                           std::array<bool, 3> output_mask) {
    check_batch_norm_input(op, input);
    check_stats(stats, input, compute_dtype(input.scalar_type()));
    return backward(grad_output, input, weight, {stats, {}, {}, 0.0}, output_mask);
  }

  static std::tuple<Tensor, Tensor, Tensor> eval_backward(const Tensor& grad_output, const Tensor& input,
                                                          const OptionalTensor& weight, const Tensor& running_mean,
                                                          const Tensor& running_var, double eps,
                                                          std::array<bool, 3> output_mask) {
    check_batch_norm_input(op, input);
    check_per_channel(op, "running_mean", running_mean, input);
    check_per_channel(op, "running_var", running_var, input);
    return backward(grad_output, input, weight, {{}, running_mean, running_var, eps}, output_mask);
  }

  static void register_in(torch::Library& m) {
    m.impl("batch_norm_train", TORCH_FN(train));
    m.impl("batch_norm_eval", TORCH_FN(eval));
    m.impl("batch_norm_train_backward", TORCH_FN(train_backward));
    m.impl("batch_norm_eval_backward", TORCH_FN(eval_backward));
  }

 private:
  static Tensor or_undefined(const OptionalTensor& t) { return t ? *t : Tensor(); }

  static Affine checked_affine(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias) {
    check_batch_norm_input(op, input);
    check_per_channel(op, "weight", weight, input);
    check_per_channel(op, "bias", bias, input);
    return {or_undefined(weight), or_undefined(bias)};
  }

  static Tensor checked_written(const char* name, const OptionalTensor& t, const Tensor& input) {
    check_per_channel(op, name, t, input);
    if (t && t->defined()) at::assert_no_internal_overlap(*t);
    return or_undefined(t);
  }

  static void check_written_apart(const Tensor& input, const Affine& affine, const Running& running) {
    const auto check = [&](const char* name, const Tensor& written) {
      check_apart(op, name, written, "input", input);
      check_apart(op, name, written, "weight", affine.weight);
      check_apart(op, name, written, "bias", affine.bias);
    };
    check("running_mean", running.mean);
    check("running_var", running.var);
    check("num_batches_tracked", running.num_batches_tracked);
    check_apart(op, "running_mean", running.mean, "running_var", running.var);
    check_apart(op, "running_mean", running.mean, "num_batches_tracked", running.num_batches_tracked);
    check_apart(op, "running_var", running.var, "num_batches_tracked", running.num_batches_tracked);
  }

  static std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                                     const OptionalTensor& weight, const Statistics& statistics,
                                                     std::array<bool, 3> output_mask) {
    check_grad_output(op, grad_output, input);
    check_per_channel(op, "weight", weight, input);

    const typename Backend::Guard guard(input);
    const Tensor x = with_channel_layout(input);
    const Tensor dy = with_layout_of(grad_output, x);
    const Tensor w = or_undefined(weight);
    const auto parameter = x.options().dtype(w.defined() ? w.scalar_type() : compute_dtype(x.scalar_type()));
    Gradients gradients;
    if (output_mask[0]) gradients.input = at::empty_like(x);
    if (output_mask[1]) gradients.weight = at::empty({input.size(1)}, parameter);
    if (output_mask[2]) gradients.bias = at::empty({input.size(1)}, parameter);
    if (x.numel() > 0) {
      Backend::backward(*channel_layout(x), dy, x, w, statistics, gradients);
    } else {
      for (const Tensor& sum : {gradients.weight, gradients.bias})
        if (sum.defined()) sum.zero_();
    }

    const auto or_empty = [&](const Tensor& t) { return t.defined() ? t : at::empty({0}, x.options()); };
    return {output_mask[0] ? in_order_of(gradients.input, input) : or_empty({}), or_empty(gradients.weight),
            or_empty(gradients.bias)};
  }
};

}  // namespace fastreg
