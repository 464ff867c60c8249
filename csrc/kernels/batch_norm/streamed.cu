// The streamed batch norm kernels, as they are.
#include "kernels/batch_norm/streamed_launch.cuh"

namespace fastreg {

WorkspaceSize batch_norm_workspace(int element_bytes, const BatchNormShape& shape, const Device& device) {
  // The most that any vector width asks for.
  WorkspaceSize size = {0, 0};
  for (const int vector : {1, streamed::kMostChannels, 16 / element_bytes}) {
    if (vector * element_bytes > 16 || (shape.rows ? shape.channels : shape.size) % vector != 0) continue;
    const streamed::Plan plan = streamed::plan_for(shape, vector, device);
    if (plan.grid.y == 1) continue;  // no channel is divided: there is nothing to hand over
    const int64_t partial_bytes = 4 * std::max(element_bytes, int(sizeof(float)));
    size.partial_bytes = std::max(size.partial_bytes, int64_t(plan.grid.y) * shape.channels * partial_bytes);
    size.tickets = std::max(size.tickets, reduction_tickets(plan.grid.x, plan.grid.y));
  }
  return size;
}

FASTREG_INSTANTIATE_STREAMED(float, NoEpilogue);
FASTREG_INSTANTIATE_STREAMED(double, NoEpilogue);
FASTREG_INSTANTIATE_STREAMED(half, NoEpilogue);
FASTREG_INSTANTIATE_STREAMED(bfloat16, NoEpilogue);

}  // namespace fastreg
