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
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "operators/checks.h"
#include "operators/dispatch.h"
#include "operators/layout.h"
#include "operators/results.h"

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
  at::Tensor grad_means = {};  // backward: [2, C], means of dy and of dy * x_hat, where they are known already
};
struct Gradients {
  at::Tensor input, weight, bias;
};

inline at::Tensor or_undefined(const std::optional<at::Tensor>& t) { return t ? *t : at::Tensor(); }

inline Affine checked_affine(const char* op, const at::Tensor& input, const std::optional<at::Tensor>& weight,
                             const std::optional<at::Tensor>& bias) {
  check_batch_norm_input(op, input);
  check_per_channel(op, "weight", weight, input);
  check_per_channel(op, "bias", bias, input);
  return {or_undefined(weight), or_undefined(bias)};
}

inline void check_written_apart(const char* op, const Running& running, const char* name, const at::Tensor& read) {
  check_apart(op, "running_mean", running.mean, name, read);
  check_apart(op, "running_var", running.var, name, read);
  check_apart(op, "num_batches_tracked", running.num_batches_tracked, name, read);
}

// What training writes to beside its results, none of which shares memory with anything else.
inline Running checked_running(const char* op, const at::Tensor& input, const Affine& affine,
                               const std::optional<at::Tensor>& running_mean,
                               const std::optional<at::Tensor>& running_var,
                               const std::optional<at::Tensor>& num_batches_tracked, std::optional<double> momentum) {
  const auto checked = [&](const char* name, const std::optional<at::Tensor>& t) {
    check_per_channel(op, name, t, input);
    if (t && t->defined()) at::assert_no_internal_overlap(*t);
    return or_undefined(t);
  };
  const Running running = {checked("running_mean", running_mean), checked("running_var", running_var),
                           or_undefined(num_batches_tracked), momentum};
  check_momentum(op, momentum, running.num_batches_tracked, input);
  check_written_apart(op, running, "input", input);
  check_written_apart(op, running, "weight", affine.weight);
  check_written_apart(op, running, "bias", affine.bias);
  check_apart(op, "running_mean", running.mean, "running_var", running.var);
  check_apart(op, "running_mean", running.mean, "num_batches_tracked", running.num_batches_tracked);
  check_apart(op, "running_var", running.var, "num_batches_tracked", running.num_batches_tracked);
  return running;
}

inline Statistics checked_statistics(const char* op, const at::Tensor& input, const at::Tensor& running_mean,
                                     const at::Tensor& running_var, double eps) {
  check_per_channel(op, "running_mean", running_mean, input);
  check_per_channel(op, "running_var", running_var, input);
  return {{}, running_mean, running_var, eps};
}

// Training forward: `compute` writes to the stats given to it and to the running statistics. Returns stats.
template <class F>
at::Tensor new_stats(const at::Tensor& x, const Running& running, F&& compute) {
  const auto options = x.options().dtype(compute_dtype(x.scalar_type()));
  if (x.numel() == 0) {
    // A batch of nothing has no statistics, and leaves the running ones alone.
    if (running.num_batches_tracked.defined()) running.num_batches_tracked.add_(1);
    return at::full({3, x.size(1)}, std::numeric_limits<double>::quiet_NaN(), options);
  }
  const at::Tensor stats = at::empty({3, x.size(1)}, options);
  compute(stats);
  for (const at::Tensor& written : {running.mean, running.var, running.num_batches_tracked})
    if (written.defined()) mark_written(written);
  return stats;
}

// Memory for the gradients that are wanted; of an empty batch, their values.
inline Gradients new_gradients(const at::Tensor& x, const at::Tensor& weight, bool input_wanted, bool weight_wanted,
                               bool bias_wanted) {
  const auto options = x.options().dtype(weight.defined() ? weight.scalar_type() : compute_dtype(x.scalar_type()));
  Gradients gradients;
  if (input_wanted) gradients.input = empty_normalized_like(x);
  for (auto [wanted, sum] : {std::pair(weight_wanted, &gradients.weight), std::pair(bias_wanted, &gradients.bias)})
    if (wanted) *sum = x.numel() > 0 ? at::empty({x.size(1)}, options) : at::zeros({x.size(1)}, options);
  return gradients;
}

// A gradient as an operator returns it: an empty tensor where it was not asked for.
inline at::Tensor or_empty(const at::Tensor& gradient, const at::Tensor& like) {
  return gradient.defined() ? gradient : at::empty({0}, like.options());
}

template <class Backend>
struct BatchNormOperators {
  using Tensor = at::Tensor;
  using OptionalTensor = std::optional<at::Tensor>;
  static constexpr const char* op = "batch_norm";

  static std::tuple<Tensor, Tensor> train(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                          const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                          const OptionalTensor& num_batches_tracked, std::optional<double> momentum,
                                          double eps) {
    const Affine affine = checked_affine(op, input, weight, bias);
    const Running running =
        checked_running(op, input, affine, running_mean, running_var, num_batches_tracked, momentum);

    const typename Backend::Guard guard(input);
    Tensor y = empty_normalized_like(input);
    const Tensor x = with_layout_of(input, y);
    const Tensor stats = new_stats(x, running, [&](const Tensor& written) {
      Backend::train(*channel_layout(x), x, y, affine, {written, {}, {}, eps}, running);
    });
    return {y, stats};
  }

  static Tensor eval(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                     const Tensor& running_mean, const Tensor& running_var, double eps) {
    const Affine affine = checked_affine(op, input, weight, bias);
    const Statistics statistics = checked_statistics(op, input, running_mean, running_var, eps);

    const typename Backend::Guard guard(input);
    Tensor y = empty_normalized_like(input);
    const Tensor x = with_layout_of(input, y);
    if (x.numel() > 0) Backend::eval(*channel_layout(x), x, y, affine, statistics);
    return y;
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
    return backward(grad_output, input, weight, checked_statistics(op, input, running_mean, running_var, eps),
                    output_mask);
  }

  static void register_in(torch::Library& m) {
    m.impl("batch_norm_train", TORCH_FN(train));
    m.impl("batch_norm_eval", TORCH_FN(eval));
    m.impl("batch_norm_train_backward", TORCH_FN(train_backward));
    m.impl("batch_norm_eval_backward", TORCH_FN(eval_backward));
  }

 private:
  static std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                                     const OptionalTensor& weight, const Statistics& statistics,
                                                     std::array<bool, 3> output_mask) {
    check_grad_output(op, grad_output, input);
    check_per_channel(op, "weight", weight, input);

    const typename Backend::Guard guard(input);
    const Tensor x = in_normalized_layout(input);
    const Tensor dy = with_layout_of(grad_output, x);
    const Tensor w = or_undefined(weight);
    const Gradients gradients = new_gradients(input, w, output_mask[0], output_mask[1], output_mask[2]);
    if (x.numel() > 0) Backend::backward(*channel_layout(x), dy, x, w, statistics, gradients);
    return {or_empty(gradients.input, x), or_empty(gradients.weight, x), or_empty(gradients.bias, x)};
  }
};

}  // namespace fastreg
