// Training's launches by plan: whatever the tier.
#pragma once

#include <type_traits>

#include "kernels/batch_norm/batch_norm.h"
#include "kernels/batch_norm/epilogue.h"
#include "kernels/batch_norm/grid.h"
#include "kernels/batch_norm/plan.h"

namespace fastreg {

// Of a device that is there, and current.
cudaError_t query_device_limits(int device, DeviceLimits* limits);

// ---- Slab and cluster; float, half, bfloat16 ----

template <class T, class E = NoEpilogue>
cudaError_t launch_slab_train(const BatchNormPlan& plan, const T* x, T* y, const BatchNormShape& shape,
                              const ChannelValues& weight, const ChannelValues& bias,
                              const ChannelStatistics& statistics, const RunningUpdate& running,
                              const Workspace& workspace, const Device& device, const E& epilogue = {});
template <class T, class E = NoEpilogue>
cudaError_t launch_slab_backward(const BatchNormPlan& plan, const T* dy, const T* x, T* dx, const BatchNormShape& shape,
                                 const ChannelValues& weight, const ChannelStatistics& statistics,
                                 const ChannelValues& dweight, const ChannelValues& dbias, const Device& device,
                                 const E& epilogue = {});

// ---- Any ----

inline bool is_slab(const BatchNormPlan& plan) { return plan.tier == Tier::slab || plan.tier == Tier::cluster; }
inline bool is_grid(const BatchNormPlan& plan) { return plan.tier == Tier::grid || plan.tier == Tier::l2; }

// running: of the training pass; null for the other passes.
inline WorkspaceSize batch_norm_workspace(const BatchNormPlan& plan, const BatchNormProblem& problem,
                                          const RunningUpdate* running, const Device& device) {
  const bool counts = running != nullptr && running->cumulative && running->num_batches_tracked != nullptr;
  if (is_slab(plan)) return {0, counts ? 1 : 0};
  if (is_grid(plan)) return grid_workspace(plan, problem.shape, counts);
  return batch_norm_workspace(problem.element_bytes, problem.shape, device);
}

template <class T, class E = NoEpilogue>
cudaError_t launch_batch_norm_train(const BatchNormPlan& plan, const T* x, T* y, const BatchNormShape& shape,
                                    const ChannelValues& weight, const ChannelValues& bias,
                                    const ChannelStatistics& statistics, const RunningUpdate& running,
                                    const Workspace& workspace, const Device& device, const E& epilogue = {}) {
  if constexpr (!std::is_same_v<T, double>) {
    if (is_slab(plan))
      return launch_slab_train(plan, x, y, shape, weight, bias, statistics, running, workspace, device, epilogue);
    if (is_grid(plan))
      return launch_grid_train(plan, x, y, shape, weight, bias, statistics, running, workspace, device,
                               without_slopes(epilogue));
  }
  return launch_batch_norm_train(x, y, shape, weight, bias, statistics, running, workspace, device, epilogue);
}

template <class T, class E = NoEpilogue>
cudaError_t launch_batch_norm_backward(const BatchNormPlan& plan, const T* dy, const T* x, T* dx,
                                       const BatchNormShape& shape, const ChannelValues& weight,
                                       const ChannelStatistics& statistics, const ChannelValues& dweight,
                                       const ChannelValues& dbias, void* coefficients, const Workspace& workspace,
                                       const Device& device, const E& epilogue = {}) {
  if constexpr (!std::is_same_v<T, double>) {
    if (is_slab(plan))
      return launch_slab_backward(plan, dy, x, dx, shape, weight, statistics, dweight, dbias, device, epilogue);
    if (is_grid(plan))
      return launch_grid_backward(plan, dy, x, dx, shape, weight, statistics, dweight, dbias, workspace, device,
                                  without_slopes(epilogue));
  }
  return launch_batch_norm_backward(dy, x, dx, shape, weight, statistics, dweight, dbias, coefficients, workspace,
                                    device, epilogue);
}

}  // namespace fastreg
