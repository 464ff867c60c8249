// The kernels of teams of co-resident blocks, as they are.
#include "kernels/batch_norm/grid_launch.cuh"

namespace fastreg {

WorkspaceSize grid_workspace(const BatchNormPlan& plan, const BatchNormShape& shape, bool cumulative) {
  const int64_t groups = (shape.channels + plan.channels_per_block - 1) / plan.channels_per_block;
  // Where blocks share a group, counters for each; for the last block one more.
  const int64_t shared = plan.splits > 1 || cumulative ? groups * grid_tickets(plan.splits, shape.rows) : 0;
  const int64_t tickets = shared + (cumulative ? 1 : 0);
  return {plan.splits * shape.channels * int64_t(sizeof(Packed<Moments<float>>)), tickets};
}

FASTREG_INSTANTIATE_GRID(float, NoEpilogue);
FASTREG_INSTANTIATE_GRID(half, NoEpilogue);
FASTREG_INSTANTIATE_GRID(bfloat16, NoEpilogue);

}  // namespace fastreg
