// Batch norm on CUDA devices.
#include <ATen/ops/zeros.h>

#include <cstdlib>
#include <map>
#include <mutex>

#include "../batch_norm_sync_operators.h"
#include "../kernels/batch_norm_tiers.h"
#include "../kernels/vector.h"
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

// Limits of the current device, asked once. FASTREG_CO_RESIDENT=0 rules out launches whose blocks wait for each other:
// they wait for multiprocessors that another stream's kernel holds.
DeviceLimits current_limits() {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const int device = current_device_index();
  auto found = known.find(device);
  if (found == known.end()) {
    DeviceLimits limits;
    check(kOp, query_device_limits(device, &limits));
    found = known.emplace(device, limits).first;
  }
  DeviceLimits limits = found->second;
  const char* const co_resident = std::getenv("FASTREG_CO_RESIDENT");
  limits.co_resident = co_resident == nullptr || std::string(co_resident) != "0";
  return limits;
}

// The plan of a pass over these tensors, all of one layout. FASTREG_BATCH_NORM_TIER names the tier to take wherever it
// can be; for tests.
struct Planned {
  BatchNormProblem problem;
  BatchNormPlan plan;

  Planned(const ChannelLayout& layout, BatchNormPass pass, std::initializer_list<Tensor> tensors) {
    problem = {shape_of(layout), int(tensors.begin()->element_size()), true, pass};
    for (const Tensor& t : tensors) problem.aligned &= !t.defined() || is_aligned(t.const_data_ptr());
    const DeviceLimits limits = current_limits();
    const char* const name = std::getenv("FASTREG_BATCH_NORM_TIER");
    if (name == nullptr || *name == 0) {
      plan = plan_batch_norm(problem, limits);
      return;
    }
    const std::optional<Tier> tier = tier_named(name);
    TORCH_CHECK_VALUE(tier, kOp, ": FASTREG_BATCH_NORM_TIER must name a tier, got ", name);
    plan = plan_batch_norm(problem, limits, tier);
    if (!plan.possible()) plan = plan_batch_norm(problem, limits, Tier::streamed);
  }
};

// Scratch memory for the reductions, alive as long as this is; the allocator keeps it for the stream's work.
struct Scratch {
  Tensor partials, tickets;

  Scratch(const Tensor& x, const WorkspaceSize& size) {
    const auto options = x.options().memory_format(std::nullopt);
    if (size.partial_bytes > 0) partials = at::empty({size.partial_bytes}, options.dtype(at::kByte));
    if (size.tickets > 0) tickets = at::zeros({size.tickets}, options.dtype(at::kInt));
  }
  Workspace get() const {
    Workspace workspace;
    if (partials.defined()) workspace.partials = partials.data_ptr();
    if (tickets.defined()) workspace.tickets = reinterpret_cast<unsigned*>(tickets.mutable_data_ptr<int>());
    return workspace;
  }
};

struct BatchNormBackend {
  using Guard = cuda::Guard;

  static void train(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
                    const Statistics& statistics, const Running& running) {
    if (!y.defined()) return statistics_alone(layout, x, statistics);
    const Device device = current_device();
    const auto [problem, plan] = Planned(layout, BatchNormPass::train, {x, y});
    const Tensor weight = contiguous(affine.weight), bias = contiguous(affine.bias);
    const Tensor mean = contiguous(running.mean), var = contiguous(running.var);
    RunningUpdate update;
    update.mean = values_of(mean);
    update.var = values_of(var);
    if (running.num_batches_tracked.defined())
      update.num_batches_tracked = running.num_batches_tracked.mutable_data_ptr<int64_t>();
    update.cumulative = !running.momentum;
    update.factor = running.momentum.value_or(0.0);
    const Scratch scratch(x, batch_norm_workspace(plan, problem, &update, device));
    dispatch_floating(x.scalar_type(), kOp, [&, &plan = plan, &problem = problem](auto tag) {
      using T = decltype(tag);
      check(kOp, launch_batch_norm_train(plan, const_data<T>(x), data<T>(y), problem.shape, values_of(weight),
                                         values_of(bias), statistics_of(statistics), update, scratch.get(), device));
    });
    if (mean.defined() && !mean.is_same(running.mean)) running.mean.copy_(mean);
    if (var.defined() && !var.is_same(running.var)) running.var.copy_(var);
  }

  static void eval(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
                   const Statistics& statistics) {
    const Tensor weight = contiguous(affine.weight), bias = contiguous(affine.bias);
    const Statistics s = {statistics.stats, contiguous(statistics.running_mean), contiguous(statistics.running_var),
                          statistics.eps};
    dispatch_floating(x.scalar_type(), kOp, [&](auto tag) {
      using T = decltype(tag);
      check(kOp, launch_batch_norm_eval(const_data<T>(x), data<T>(y), shape_of(layout), values_of(weight),
                                        values_of(bias), statistics_of(s), current_device()));
    });
  }

  static void backward(const ChannelLayout& layout, const Tensor& dy, const Tensor& x, const Tensor& weight,
                       const Statistics& statistics, const Gradients& gradients) {
    if (statistics.grad_means.defined()) return input_gradient(layout, dy, x, weight, statistics, gradients.input);
    const Device device = current_device();
    const bool training = statistics.stats.defined();
    const auto [problem, plan] = Planned(
        layout, training ? BatchNormPass::train_backward : BatchNormPass::eval_backward, {x, dy, gradients.input});
    const Tensor w = contiguous(weight);
    const Statistics s = {statistics.stats, contiguous(statistics.running_mean), contiguous(statistics.running_var),
                          statistics.eps};
    const Scratch scratch(x, batch_norm_workspace(plan, problem, nullptr, device));
    const Tensor coefficients =
        at::empty({2, layout.channels}, x.options().dtype(compute_dtype(x.scalar_type())).memory_format(std::nullopt));
    dispatch_floating(x.scalar_type(), kOp, [&, &plan = plan, &problem = problem](auto tag) {
      using T = decltype(tag);
      T* const dx = gradients.input.defined() ? data<T>(gradients.input) : nullptr;
      check(kOp, launch_batch_norm_backward(plan, const_data<T>(dy), const_data<T>(x), dx, problem.shape, values_of(w),
                                            statistics_of(s), values_of(gradients.weight), values_of(gradients.bias),
                                            coefficients.data_ptr(), scratch.get(), device));
    });
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
    RunningUpdate update;
    update.mean = values_of(mean);
    update.var = values_of(var);
    if (running.num_batches_tracked.defined())
      update.num_batches_tracked = running.num_batches_tracked.mutable_data_ptr<int64_t>();
    update.cumulative = !running.momentum;
    update.factor = running.momentum.value_or(0.0);
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
