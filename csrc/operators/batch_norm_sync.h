// The operators that batch norm over several processes is made of, for any backend: what each process computes of its
// own part of the batch. fastreg/functional/_sync_batch_norm.py has what the processes tell each other in between.
//
// A Backend provides what BatchNormOperators asks for, where
//   train      with an undefined y computes the statistics alone
//   eval       normalises with statistics.stats where that is defined
//   backward   takes the means of the gradients from statistics.grad_means where that is defined
// and
//   merge(moments, statistics, count, running)   the statistics of all parts from those of each
#pragma once

#include <ATen/ops/zeros.h>

#include "operators/batch_norm.h"

namespace fastreg {

template <class Backend>
struct BatchNormSyncOperators {
  using Tensor = at::Tensor;
  using OptionalTensor = std::optional<at::Tensor>;
  static constexpr const char* op = "sync_batch_norm";

  static Tensor moments(const Tensor& input) {
    check_batch_norm_input(op, input);
    const int64_t channels = input.size(1);
    const auto options = input.options().dtype(compute_dtype(input.scalar_type())).memory_format(std::nullopt);
    if (input.numel() == 0) return at::zeros({3 * channels + 1}, options);

    const typename Backend::Guard guard(input);
    const Tensor x = with_channel_layout(input);
    const ChannelLayout layout = *channel_layout(x);
    Tensor moments = at::empty({3 * channels + 1}, options);
    const Tensor stats = moments.narrow(0, 0, 3 * channels).view({3, channels});
    Backend::train(layout, x, {}, {}, {stats, {}, {}, 0.0, {}}, {{}, {}, {}, 0.0});
    moments.narrow(0, 3 * channels, 1).fill_(double(layout.per_channel()));
    return moments;
  }

  static std::tuple<Tensor, Tensor> merge(const Tensor& moments, const OptionalTensor& running_mean,
                                          const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked,
                                          std::optional<double> momentum, double eps) {
    TORCH_CHECK(moments.dim() == 2 && moments.size(0) > 0 && moments.size(1) % 3 == 1 && moments.is_contiguous(), op,
                ": moments must be contiguous, of shape [parts, 3 * channels + 1], got ", moments.sizes());
    TORCH_CHECK(moments.scalar_type() == at::kFloat || moments.scalar_type() == at::kDouble, op,
                ": moments must be float32 or float64, got ", moments.scalar_type());
    const int64_t channels = moments.size(1) / 3;
    const Running running = {checked_running("running_mean", running_mean, moments, channels),
                             checked_running("running_var", running_var, moments, channels),
                             num_batches_tracked.value_or(Tensor()), momentum};
    check_momentum(op, momentum, running.num_batches_tracked, moments);
    check_apart(op, "running_mean", running.mean, "running_var", running.var);

    const typename Backend::Guard guard(moments);
    if (running.num_batches_tracked.defined()) running.num_batches_tracked.add_(1);
    Tensor stats = at::empty({3, channels}, moments.options());
    Tensor count = at::empty({}, moments.options().dtype(at::kDouble));
    Backend::merge(moments, {stats, {}, {}, eps, {}}, count, running);
    for (const Tensor& written : {running.mean, running.var})
      if (written.defined()) mark_written(written);
    return {stats, count};
  }

  static Tensor normalize(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                          const Tensor& stats) {
    check_batch_norm_input(op, input);
    check_per_channel(op, "weight", weight, input);
    check_per_channel(op, "bias", bias, input);
    check_stats(stats, input, compute_dtype(input.scalar_type()));

    const typename Backend::Guard guard(input);
    Tensor y = empty_normalized_like(input);
    const Tensor x = with_layout_of(input, y);
    const Affine affine = {weight.value_or(Tensor()), bias.value_or(Tensor())};
    if (x.numel() > 0) Backend::eval(*channel_layout(x), x, y, affine, {stats, {}, {}, 0.0, {}});
    return y;
  }

  static Tensor grad_input(const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight,
                           const Tensor& stats, const Tensor& grad_means) {
    check_batch_norm_input(op, input);
    check_grad_output(op, grad_output, input);
    check_per_channel(op, "weight", weight, input);
    check_stats(stats, input, compute_dtype(input.scalar_type()));
    TORCH_CHECK(grad_means.dim() == 2 && grad_means.size(0) == 2 && grad_means.size(1) == input.size(1) &&
                    grad_means.is_contiguous() && grad_means.scalar_type() == stats.scalar_type() &&
                    grad_means.device() == input.device(),
                op, ": grad_means must be a contiguous ", stats.scalar_type(), " tensor of shape [2, ", input.size(1),
                "] on ", input.device(), ", got ", grad_means.scalar_type(), " ", grad_means.sizes(), " on ",
                grad_means.device());

    const typename Backend::Guard guard(input);
    const Gradients gradients = {empty_normalized_like(input), {}, {}};
    const Tensor x = with_layout_of(input, gradients.input);
    const Tensor dy = with_layout_of(grad_output, x);
    if (x.numel() > 0)
      Backend::backward(*channel_layout(x), dy, x, weight.value_or(Tensor()), {stats, {}, {}, 0.0, grad_means},
                        gradients);
    return gradients.input;
  }

  static void register_in(torch::Library& m) {
    m.impl("batch_norm_moments", TORCH_FN(moments));
    m.impl("batch_norm_merge", TORCH_FN(merge));
    m.impl("batch_norm_normalize", TORCH_FN(normalize));
    m.impl("batch_norm_grad_input", TORCH_FN(grad_input));
  }

 private:
  static Tensor checked_running(const char* name, const OptionalTensor& t, const Tensor& moments, int64_t channels) {
    if (!t || !t->defined()) return {};
    TORCH_CHECK(t->dim() == 1 && t->size(0) == channels && t->device() == moments.device(), op, ": ", name,
                " must have shape [", channels, "] on ", moments.device(), ", got ", t->sizes(), " on ", t->device());
    TORCH_CHECK(t->scalar_type() == moments.scalar_type() ||
                    (moments.scalar_type() == at::kFloat &&
                     (t->scalar_type() == at::kHalf || t->scalar_type() == at::kBFloat16)),
                op, ": ", name, " must be of the input's dtype or float32, got ", t->scalar_type(), " with moments in ",
                moments.scalar_type());
    at::assert_no_internal_overlap(*t);
    return *t;
  }
};

}  // namespace fastreg
