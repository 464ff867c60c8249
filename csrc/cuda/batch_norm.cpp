// Batch norm on CUDA devices.
#include "cuda/batch_norm_call.h"
#include "operators/batch_norm_sync.h"

namespace fastreg::cuda {
namespace {

constexpr const char* kOp = "batch_norm";

constexpr auto without_epilogue = [](auto...) { return NoEpilogue{}; };

struct BatchNormBackend {
  using Guard = cuda::Guard;

  static void train(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
                    const Statistics& statistics, const Running& running) {
    if (!y.defined()) return statistics_alone(layout, x, statistics);
    const Planned planned(kOp, layout, BatchNormPass::train, {x, y}, false);
    cuda::train(kOp, planned, x, y, affine, statistics, running, without_epilogue);
  }

  static void eval(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
                   const Statistics& statistics) {
    cuda::eval(kOp, layout, x, y, affine, statistics, without_epilogue);
  }

  static void backward(const ChannelLayout& layout, const Tensor& dy, const Tensor& x, const Tensor& weight,
                       const Statistics& statistics, const Gradients& gradients) {
    if (statistics.grad_means.defined()) return input_gradient(layout, dy, x, weight, statistics, gradients.input);
    const Planned planned(kOp, layout, backward_pass(statistics), {x, dy, gradients.input}, false);
    cuda::backward(kOp, planned, dy, x, weight, statistics, gradients, without_epilogue);
  }

  static void merge(const Tensor& moments, const Statistics& statistics, const Tensor& count, const Running& running) {
    const int64_t channels = statistics.stats.size(1);
    if (channels == 0) {
      count.zero_();
      return;
    }
    // The kernel knows running statistics of the moments' type alone: others are rare, and few values.
    const auto as_moments = [&](const Tensor& t) { return t.defined() ? t.to(moments.scalar_type()).contiguous() : t; };
    const Tensor mean = as_moments(running.mean), var = as_moments(running.var);
    const RunningUpdate update = update_of(running, mean, var);
    const auto launch = [&](auto tag) {
      using A = decltype(tag);
      check(kOp, launch_batch_norm_merge(const_data<A>(moments), moments.size(0), channels, statistics.eps,
                                         data<A>(statistics.stats), data<double>(count), update, current_device()));
    };
    moments.scalar_type() == at::kDouble ? launch(double{}) : launch(float{});
    if (mean.defined() && !mean.is_same(running.mean)) running.mean.copy_(mean);
    if (var.defined() && !var.is_same(running.var)) running.var.copy_(var);
  }

 private:
  static void statistics_alone(const ChannelLayout& layout, const Tensor& x, const Statistics& statistics) {
    const Device device = current_device();
    const BatchNormShape shape = shape_of(layout);
    const Scratch scratch(x, batch_norm_workspace(int(x.element_size()), shape, device));
    dispatch_floating(x.scalar_type(), kOp, [&](auto tag) {
      check(kOp, launch_batch_norm_statistics(const_data<decltype(tag)>(x), shape, statistics_of(statistics), {},
                                              scratch.get(), device));
    });
  }

  static void input_gradient(const ChannelLayout& layout, const Tensor& dy, const Tensor& x, const Tensor& weight,
                             const Statistics& statistics, const Tensor& dx) {
    const Tensor w = contiguous(weight);
    // The slope per x - mean instead of per x_hat.
    const Tensor coefficients = statistics.grad_means.clone();
    coefficients.select(0, 1).mul_(statistics.stats.select(0, 2));
    dispatch_floating(x.scalar_type(), kOp, [&](auto tag) {
      using T = decltype(tag);
      check(kOp, launch_batch_norm_grad_input(const_data<T>(dy), const_data<T>(x), data<T>(dx), shape_of(layout),
                                              values_of(w), statistics_of(statistics), coefficients.const_data_ptr(),
                                              current_device()));
    });
  }
};

}  // namespace
}  // namespace fastreg::cuda

TORCH_LIBRARY_IMPL(fastreg, FASTREG_DISPATCH_KEY, m) {
  fastreg::BatchNormOperators<fastreg::cuda::BatchNormBackend>::register_in(m);
  fastreg::BatchNormSyncOperators<fastreg::cuda::BatchNormBackend>::register_in(m);
}
