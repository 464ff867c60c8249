// Batch norm on CUDA devices.
#include "../kernels/batch_norm.h"

#include <ATen/ops/zeros.h>

#include "../batch_norm_operators.h"
#include "call.h"

namespace fastreg::cuda {
namespace {

using at::Tensor;

constexpr const char* kOp = "batch_norm";

BatchNormShape shape_of(const ChannelLayout& layout) {
  return {layout.planes, layout.channels, layout.size, layout.channels_last};
}

// A per-channel tensor as the kernels read or write it: contiguous.
ChannelValues values_of(const Tensor& t) {
  if (!t.defined()) return {};
  return {t.data_ptr(), t.scalar_type() == at::kFloat};
}
Tensor contiguous(const Tensor& t) { return t.defined() ? t.contiguous() : t; }

ChannelStatistics statistics_of(const Statistics& s) {
  return {s.stats.defined() ? s.stats.data_ptr() : nullptr, values_of(s.running_mean), values_of(s.running_var), s.eps};
}

// Scratch memory for the two reductions, alive as long as this is; the allocator keeps it for the stream's work.
struct Scratch {
  Tensor partials, tickets;

  Scratch(const Tensor& x, const BatchNormShape& shape, const Device& device) {
    const WorkspaceSize size = batch_norm_workspace(int(x.element_size()), shape, device);
    partials = at::empty({size.partial_bytes}, x.options().dtype(at::kByte).memory_format(std::nullopt));
    tickets = at::zeros({size.tickets}, x.options().dtype(at::kInt).memory_format(std::nullopt));
  }
  Workspace get() const { return {partials.data_ptr(), reinterpret_cast<unsigned*>(tickets.mutable_data_ptr<int>())}; }
};

struct BatchNormBackend {
  using Guard = cuda::Guard;

  static void train(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
                    const Statistics& statistics, const Running& running) {
    const Device device = current_device();
    const BatchNormShape shape = shape_of(layout);
    const Tensor weight = contiguous(affine.weight), bias = contiguous(affine.bias);
    const Tensor mean = contiguous(running.mean), var = contiguous(running.var);
    RunningUpdate update;
    update.mean = values_of(mean);
    update.var = values_of(var);
    if (running.num_batches_tracked.defined())
      update.num_batches_tracked = running.num_batches_tracked.mutable_data_ptr<int64_t>();
    update.cumulative = !running.momentum;
    update.factor = running.momentum.value_or(0.0);
    const Scratch scratch(x, shape, device);
    dispatch_floating(x.scalar_type(), kOp, [&](auto tag) {
      using T = decltype(tag);
      check(kOp, launch_batch_norm_train(const_data<T>(x), data<T>(y), shape, values_of(weight), values_of(bias),
                                         statistics_of(statistics), update, scratch.get(), device));
    });
    if (mean.defined() && !mean.is_same(running.mean)) running.mean.copy_(mean);
    if (var.defined() && !var.is_same(running.var)) running.var.copy_(var);
  }

  static void eval(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
                   const Statistics& statistics) {
    const Tensor weight = contiguous(affine.weight), bias = contiguous(affine.bias);
    const Statistics s = {{}, contiguous(statistics.running_mean), contiguous(statistics.running_var), statistics.eps};
    dispatch_floating(x.scalar_type(), kOp, [&](auto tag) {
      using T = decltype(tag);
      check(kOp, launch_batch_norm_eval(const_data<T>(x), data<T>(y), shape_of(layout), values_of(weight),
                                        values_of(bias), statistics_of(s), current_device()));
    });
  }

  static void backward(const ChannelLayout& layout, const Tensor& dy, const Tensor& x, const Tensor& weight,
                       const Statistics& statistics, const Gradients& gradients) {
    const Device device = current_device();
    const BatchNormShape shape = shape_of(layout);
    const Tensor w = contiguous(weight);
    const Statistics s = {statistics.stats, contiguous(statistics.running_mean), contiguous(statistics.running_var),
                          statistics.eps};
    const Scratch scratch(x, shape, device);
    const Tensor coefficients =
        at::empty({2, layout.channels}, x.options().dtype(compute_dtype(x.scalar_type())).memory_format(std::nullopt));
    dispatch_floating(x.scalar_type(), kOp, [&](auto tag) {
      using T = decltype(tag);
      T* const dx = gradients.input.defined() ? data<T>(gradients.input) : nullptr;
      check(kOp, launch_batch_norm_backward(const_data<T>(dy), const_data<T>(x), dx, shape, values_of(w),
                                            statistics_of(s), values_of(gradients.weight), values_of(gradients.bias),
                                            coefficients.data_ptr(), scratch.get(), device));
    });
  }
};

}  // namespace
}  // namespace fastreg::cuda

TORCH_LIBRARY_IMPL(fastreg, FASTREG_DISPATCH_KEY, m) {
  fastreg::BatchNormOperators<fastreg::cuda::BatchNormBackend>::register_in(m);
}
