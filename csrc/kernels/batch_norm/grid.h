// Launch functions of batch norm by teams of co-resident blocks, for training: tiers grid and l2. float, half,
// bfloat16.
#pragma once

#include "kernels/batch_norm/batch_norm.h"
#include "kernels/batch_norm/plan.h"

namespace fastreg {

// cumulative: RunningUpdate's; false for the backward pass.
WorkspaceSize grid_workspace(const BatchNormPlan& plan, const BatchNormShape& shape, bool cumulative);

// As launch_batch_norm_train and launch_batch_norm_backward, by a plan for these very tensors; one launch each.
template <class T, class E = NoEpilogue>
cudaError_t launch_grid_train(const BatchNormPlan& plan, const T* x, T* y, const BatchNormShape& shape,
                              const ChannelValues& weight, const ChannelValues& bias,
                              const ChannelStatistics& statistics, const RunningUpdate& running,
                              const Workspace& workspace, const Device& device, const E& epilogue = {});
template <class T, class E = NoEpilogue>
cudaError_t launch_grid_backward(const BatchNormPlan& plan, const T* dy, const T* x, T* dx, const BatchNormShape& shape,
                                 const ChannelValues& weight, const ChannelStatistics& statistics,
                                 const ChannelValues& dweight, const ChannelValues& dbias, const Workspace& workspace,
                                 const Device& device, const E& epilogue = {});

}  // namespace fastreg
