// What the batch norm operators share on CUDA devices: the plan, and the launches around which tensors are made ready.
#pragma once

#include <ATen/ops/zeros.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <tuple>
#include <vector>

#include "cuda/call.h"
#include "kernels/batch_norm/tiers.h"
#include "kernels/common/vector.h"
#include "operators/batch_norm.h"

namespace fastreg::cuda {

using at::Tensor;

inline BatchNormShape shape_of(const ChannelLayout& layout) {
  return {layout.planes, layout.channels, layout.size, layout.channels_last};
}

// A per-channel tensor as the kernels read or write it: contiguous.
inline ChannelValues values_of(const Tensor& t) {
  if (!t.defined()) return {};
  return {t.data_ptr(), t.scalar_type() == at::kFloat};
}
inline Tensor contiguous(const Tensor& t) { return t.defined() ? t.contiguous() : t; }

inline ChannelStatistics statistics_of(const Statistics& s) {
  return {s.stats.defined() ? s.stats.data_ptr() : nullptr, values_of(s.running_mean), values_of(s.running_var), s.eps};
}

// Limits of the current device, asked once. FASTREG_CO_RESIDENT=0 rules out launches whose blocks wait for each other:
// they wait for multiprocessors that another stream's kernel holds.
inline DeviceLimits current_limits(const char* op) {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const int device = current_device_index();
  auto found = known.find(device);
  if (found == known.end()) {
    DeviceLimits limits;
    check(op, query_device_limits(device, &limits));
    found = known.emplace(device, limits).first;
  }
  DeviceLimits limits = found->second;
  const char* const co_resident = std::getenv("FASTREG_CO_RESIDENT");
  limits.co_resident = co_resident == nullptr || std::string(co_resident) != "0";
  return limits;
}

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

using TensorList = std::vector<Tensor>;

// Errors of a launch whose blocks cannot be resident together although the device's limits promise it: under MPS, in a
// green context, with a debugger. Nothing has been launched then.
inline bool is_refused(cudaError_t error) {
  return error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorLaunchOutOfResources ||
         error == cudaErrorInvalidClusterSize || error == cudaErrorNotSupported;
}

// Which launches devices have refused: they would do so again. By device and by what is launched.
class Refusals {
 public:
  using Key = std::tuple<int, BatchNormPass, Tier, at::ScalarType, bool, int64_t, int, int, int64_t>;

  static Key key(const BatchNormProblem& problem, const BatchNormPlan& plan, at::ScalarType type) {
    return {refusing_device(), problem.pass, plan.tier,        type, problem.fused, plan.blocks,
            plan.threads,      plan.cluster, plan.shared_bytes};
  }
  static bool contain(const Key& key) {
    const std::lock_guard<std::mutex> lock(mutex());
    return known().count(key) > 0;
  }
  static void add(const Key& key) {
    const std::lock_guard<std::mutex> lock(mutex());
    known().insert(key);
  }

 private:
  static std::mutex& mutex() {
    static std::mutex instance;
    return instance;
  }
  static std::set<Key>& known() {
    static std::set<Key> instance;
    return instance;
  }
};

// The plan of a pass over these tensors, all of one layout. FASTREG_BATCH_NORM_TIER names the tier to take wherever it
// can be; for tests.
struct Planned {
  BatchNormProblem problem;
  DeviceLimits limits;
  BatchNormPlan plan;

  Planned(const char* op, const ChannelLayout& layout, BatchNormPass pass, const TensorList& tensors, bool fused,
          const EpilogueTraffic& epilogue = {})
      : problem{shape_of(layout), int(tensors[0].element_size()), true, pass, fused, epilogue},
        limits(current_limits(op)) {
    for (const Tensor& t : tensors) problem.aligned &= !t.defined() || is_aligned(t.const_data_ptr());
    const char* const name = std::getenv("FASTREG_BATCH_NORM_TIER");
    if (name == nullptr || *name == 0) {
      plan = plan_batch_norm(problem, limits);
      return;
    }
    const std::optional<Tier> tier = tier_named(name);
    TORCH_CHECK_VALUE(tier, op, ": FASTREG_BATCH_NORM_TIER must name a tier, got ", name);
    plan = plan_batch_norm(problem, limits, tier);
    if (!plan.possible()) plan = plan_batch_norm(problem, limits, Tier::streamed);
  }

  // f(plan, workspace) launches: what is planned, or streamed where the device refuses that. running: of the training
  // pass, else null.
  template <class F>
  void launch(const char* op, const Tensor& x, const RunningUpdate* running, F&& f) const {
    const auto launched = [&](const BatchNormPlan& by) {
      const Scratch scratch(x, batch_norm_workspace(by, problem, running, current_device()));
      return f(by, scratch.get());
    };
    const auto streamed = [&] { check(op, launched(plan_batch_norm(problem, limits, Tier::streamed))); };
    if (plan.tier == Tier::streamed) return streamed();
    const Refusals::Key key = Refusals::key(problem, plan, x.scalar_type());
    if (Refusals::contain(key)) return streamed();
    const cudaError_t error = launched(plan);
    if (!is_refused(error)) return check(op, error);
    cudaGetLastError();  // it has been dealt with
    Refusals::add(key);
    streamed();
  }
};

// mean, var: the running statistics, contiguous.
inline RunningUpdate update_of(const Running& running, const Tensor& mean, const Tensor& var) {
  RunningUpdate update;
  update.mean = values_of(mean);
  update.var = values_of(var);
  if (running.num_batches_tracked.defined())
    update.num_batches_tracked = running.num_batches_tracked.mutable_data_ptr<int64_t>();
  update.cumulative = !running.momentum;
  update.factor = running.momentum.value_or(0.0);
  return update;
}

// In all of these epilogue(T{}), or in training epilogue(plan, T{}) for a launch by that plan, is a NoEpilogue or a
// SlopedEpilogue<T>; planned.problem.fused says which.

template <class F>
void train(const char* op, const Planned& planned, const Tensor& x, const Tensor& y, const Affine& affine,
           const Statistics& statistics, const Running& running, F&& epilogue) {
  const Device device = current_device();
  const Tensor weight = contiguous(affine.weight), bias = contiguous(affine.bias);
  const Tensor mean = contiguous(running.mean), var = contiguous(running.var);
  const RunningUpdate update = update_of(running, mean, var);
  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    planned.launch(op, x, &update, [&](const BatchNormPlan& plan, const Workspace& workspace) {
      return launch_batch_norm_train(plan, const_data<T>(x), data<T>(y), planned.problem.shape, values_of(weight),
                                     values_of(bias), statistics_of(statistics), update, workspace, device,
                                     epilogue(plan, tag));
    });
  });
  if (mean.defined() && !mean.is_same(running.mean)) running.mean.copy_(mean);
  if (var.defined() && !var.is_same(running.var)) running.var.copy_(var);
}

template <class F>
void eval(const char* op, const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
          const Statistics& statistics, F&& epilogue) {
  const Tensor weight = contiguous(affine.weight), bias = contiguous(affine.bias);
  const Statistics s = {statistics.stats, contiguous(statistics.running_mean), contiguous(statistics.running_var),
                        statistics.eps};
  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    check(op, launch_batch_norm_eval(const_data<T>(x), data<T>(y), shape_of(layout), values_of(weight), values_of(bias),
                                     statistics_of(s), current_device(), epilogue(tag)));
  });
}

template <class F>
void backward(const char* op, const Planned& planned, const Tensor& dy, const Tensor& x, const Tensor& weight,
              const Statistics& statistics, const Gradients& gradients, F&& epilogue) {
  const Device device = current_device();
  const Tensor w = contiguous(weight);
  const Statistics s = {statistics.stats, contiguous(statistics.running_mean), contiguous(statistics.running_var),
                        statistics.eps};
  const Tensor coefficients = at::empty({2, planned.problem.shape.channels},
                                        x.options().dtype(compute_dtype(x.scalar_type())).memory_format(std::nullopt));
  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    T* const dx = gradients.input.defined() ? data<T>(gradients.input) : nullptr;
    planned.launch(op, x, nullptr, [&](const BatchNormPlan& plan, const Workspace& workspace) {
      return launch_batch_norm_backward(plan, const_data<T>(dy), const_data<T>(x), dx, planned.problem.shape,
                                        values_of(w), statistics_of(s), values_of(gradients.weight),
                                        values_of(gradients.bias), coefficients.data_ptr(), workspace, device,
                                        epilogue(plan, tag));
    });
  });
}

// The pass backward that belongs to what was normalised so.
inline BatchNormPass backward_pass(const Statistics& statistics) {
  return statistics.stats.defined() ? BatchNormPass::train_backward : BatchNormPass::eval_backward;
}

}  // namespace fastreg::cuda
