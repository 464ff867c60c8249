// The kernels of teams of co-resident blocks, as they are.
#include "kernels/batch_norm/grid_launch.cuh"

namespace fastreg {

WorkspaceSize grid_workspace(const BatchNormPlan& plan, const BatchNormShape& shape, bool cumulative) {
  const int64_t groups = (shape.channels + plan.channels_per_block - 1) / plan.channels_per_block;
  // Where blocks share a group, a counter for each; for the last block one more.
  const int64_t tickets = cumulative ? groups + 1 : plan.splits > 1 ? groups : 0;
  return {plan.splits * shape.channels * int64_t(sizeof(Packed<Moments<float>>)), tickets};
}

FASTREG_INSTANTIATE_GRID(float, NoEpilogue);
FASTREG_INSTANTIATE_GRID(half, NoEpilogue);
FASTREG_INSTANTIATE_GRID(bfloat16, NoEpilogue);

}  // namespace fastreg
