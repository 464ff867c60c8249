// Launches of batch norm by teams of co-resident blocks.
#include "batch_norm_grid.cuh"

#include "batch_norm_grid.h"

namespace fastreg {

namespace {

// The division that the plan means, for these tensors.
template <int V>
GridDivision division_of(const BatchNormShape& s, const BatchNormPlan& plan) {
  GridDivision d;
  d.of.channels = s.channels;
  d.of.columns = plan.columns;
  d.of.plane_vectors = s.rows ? 0 : s.size / V;
  d.of.length = s.rows ? s.per_channel() : s.planes * d.of.plane_vectors;
  d.of.split_length = plan.split_length;
  d.groups = (s.channels + plan.channels_per_block - 1) / plan.channels_per_block;
  d.splits = plan.splits;
  d.kept = plan.kept;
  d.buffers = plan.buffers;
  return d;
}

template <class T, class F>
cudaError_t with_layout(const BatchNormShape& s, const BatchNormPlan& plan, const Device& device, F&& f) {
  constexpr int V = kVector<T>;
  LaunchConfig config;
  config.grid = dim3(unsigned(plan.blocks));
  config.block = dim3(unsigned(plan.threads));
  config.shared_bytes = size_t(plan.shared_bytes);
  config.stream = device.stream;
  config.cooperative = plan.splits > 1;
  const GridDivision d = division_of<V>(s, plan);
  return s.rows ? f(config, d, std::bool_constant<true>{}) : f(config, d, std::bool_constant<false>{});
}

}  // namespace

WorkspaceSize grid_workspace(const BatchNormPlan& plan, const BatchNormShape& shape, bool cumulative) {
  const int64_t groups = (shape.channels + plan.channels_per_block - 1) / plan.channels_per_block;
  // Where blocks share a group, a counter for each; for the last block one more.
  const int64_t tickets = cumulative ? groups + 1 : plan.splits > 1 ? groups : 0;
  return {plan.splits * shape.channels * int64_t(sizeof(Vector<float, 2>)), tickets};
}

template <class T>
cudaError_t launch_grid_train(const BatchNormPlan& plan, const T* x, T* y, const BatchNormShape& shape,
                              const ChannelValues& weight, const ChannelValues& bias,
                              const ChannelStatistics& statistics, const RunningUpdate& running,
                              const Workspace& workspace, const Device& device) {
  return with_layout<T>(shape, plan, device, [&](const LaunchConfig& config, const GridDivision& d, auto rows) {
    return launch(config, batch_norm_grid_train_kernel<T, kVector<T>, rows>, x, y, d, weight, bias, statistics, running,
                  workspace);
  });
}

template <class T>
cudaError_t launch_grid_backward(const BatchNormPlan& plan, const T* dy, const T* x, T* dx, const BatchNormShape& shape,
                                 const ChannelValues& weight, const ChannelStatistics& statistics,
                                 const ChannelValues& dweight, const ChannelValues& dbias, const Workspace& workspace,
                                 const Device& device) {
  return with_layout<T>(shape, plan, device, [&](const LaunchConfig& config, const GridDivision& d, auto rows) {
    return launch(config, batch_norm_grid_backward_kernel<T, kVector<T>, rows>, dy, x, dx, d, weight, statistics,
                  dweight, dbias, workspace);
  });
}

#define FASTREG_INSTANTIATE(T)                                                                                    \
  template cudaError_t launch_grid_train(const BatchNormPlan&, const T*, T*, const BatchNormShape&,               \
                                         const ChannelValues&, const ChannelValues&, const ChannelStatistics&,    \
                                         const RunningUpdate&, const Workspace&, const Device&);                  \
  template cudaError_t launch_grid_backward(const BatchNormPlan&, const T*, const T*, T*, const BatchNormShape&,  \
                                            const ChannelValues&, const ChannelStatistics&, const ChannelValues&, \
                                            const ChannelValues&, const Workspace&, const Device&)
FASTREG_INSTANTIATE(float);
FASTREG_INSTANTIATE(half);
FASTREG_INSTANTIATE(bfloat16);
#undef FASTREG_INSTANTIATE

}  // namespace fastreg
