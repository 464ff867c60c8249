// Launches of batch norm by teams of co-resident blocks.
#pragma once

#include "kernels/batch_norm/grid.cuh"
#include "kernels/batch_norm/grid.h"

namespace fastreg {

namespace grid {

// The division that the plan means, for these tensors. vector: elements of one.
inline GridDivision division_of(const BatchNormShape& s, const BatchNormPlan& plan, int vector) {
  GridDivision d;
  d.of.channels = s.channels;
  d.of.columns = plan.columns;
  d.of.plane_vectors = s.rows ? 0 : s.size / vector;
  d.of.length = s.rows ? s.per_channel() : s.planes * d.of.plane_vectors;
  d.of.split_length = plan.split_length;
  d.groups = (s.channels + plan.channels_per_block - 1) / plan.channels_per_block;
  d.splits = plan.splits;
  d.kept = plan.kept;
  d.buffers = plan.buffers;
  return d;
}

// f(configuration, division, V, kRows)
template <class T, class E, bool kBackward, class F>
cudaError_t with_layout(const BatchNormShape& s, const BatchNormPlan& plan, const Device& device, F&& f) {
  LaunchConfig config;
  config.grid = dim3(unsigned(plan.blocks));
  config.block = dim3(unsigned(plan.threads));
  config.shared_bytes = size_t(plan.shared_bytes);
  config.stream = device.stream;
  config.cooperative = plan.splits > 1;
  const auto launched = [&](auto rows) {
    constexpr int V = grid_vector(sizeof(T), rows, kBackward, is_fused<E>);
    return f(config, division_of(s, plan, V), std::integral_constant<int, V>{}, rows);
  };
  return s.rows ? launched(std::bool_constant<true>{}) : launched(std::bool_constant<false>{});
}

}  // namespace grid

template <class T, class E>
cudaError_t launch_grid_train(const BatchNormPlan& plan, const T* x, T* y, const BatchNormShape& shape,
                              const ChannelValues& weight, const ChannelValues& bias,
                              const ChannelStatistics& statistics, const RunningUpdate& running,
                              const Workspace& workspace, const Device& device, const E& epilogue) {
  return grid::with_layout<T, E, false>(shape, plan, device, [&](const auto& config, const auto& d, auto v, auto rows) {
    return launch(config, batch_norm_grid_train_kernel<T, v, rows, E>, x, y, d, weight, bias, statistics, running,
                  workspace, epilogue);
  });
}

template <class T, class E>
cudaError_t launch_grid_backward(const BatchNormPlan& plan, const T* dy, const T* x, T* dx, const BatchNormShape& shape,
                                 const ChannelValues& weight, const ChannelStatistics& statistics,
                                 const ChannelValues& dweight, const ChannelValues& dbias, const Workspace& workspace,
                                 const Device& device, const E& epilogue) {
  return grid::with_layout<T, E, true>(shape, plan, device, [&](const auto& config, const auto& d, auto v, auto rows) {
    return launch(config, batch_norm_grid_backward_kernel<T, v, rows, E>, dy, x, dx, d, weight, statistics, dweight,
                  dbias, workspace, epilogue);
  });
}

// In namespace fastreg.
#define FASTREG_INSTANTIATE_GRID(T, E)                                                                               \
  template cudaError_t launch_grid_train<T, E>(const BatchNormPlan&, const T*, T*, const BatchNormShape&,            \
                                               const ChannelValues&, const ChannelValues&, const ChannelStatistics&, \
                                               const RunningUpdate&, const Workspace&, const Device&, const E&);     \
  template cudaError_t launch_grid_backward<T, E>(                                                                   \
      const BatchNormPlan&, const T*, const T*, T*, const BatchNormShape&, const ChannelValues&,                     \
      const ChannelStatistics&, const ChannelValues&, const ChannelValues&, const Workspace&, const Device&, const E&)

}  // namespace fastreg
