// Launches of the slab kernels.
#pragma once

#include "kernels/batch_norm/slab.cuh"
#include "kernels/batch_norm/tiers.h"

namespace fastreg {

namespace slab {

template <class T>
SlabDivision division_for(const BatchNormPlan& plan, const BatchNormShape& s) {
  SlabDivision d;
  d.channels = s.channels;
  d.size = s.size;
  d.planes = int(s.planes);
  d.group = int(plan.channels_per_block);
  d.items = int((s.channels + d.group - 1) / d.group);
  d.tile_vectors = int(slab_share(s.planes, d.group * s.size / kVector<T>, d.group > 1, plan.cluster));
  d.buffers = plan.buffers;
  return d;
}

inline LaunchConfig config_for(const BatchNormPlan& plan, const Device& device) {
  LaunchConfig config;
  config.grid = dim3(unsigned(plan.blocks));
  config.block = dim3(unsigned(plan.threads));
  config.shared_bytes = size_t(plan.shared_bytes);
  config.cluster = unsigned(plan.cluster);
  config.stream = device.stream;
  return config;
}

}  // namespace slab

template <class T, class E>
cudaError_t launch_slab_train(const BatchNormPlan& plan, const T* x, T* y, const BatchNormShape& shape,
                              const ChannelValues& weight, const ChannelValues& bias,
                              const ChannelStatistics& statistics, const RunningUpdate& running,
                              const Workspace& workspace, const Device& device, const E& epilogue) {
  const auto kernel = plan.channels_per_block > 1 ? batch_norm_slab_train_kernel<T, kVector<T>, true, E>
                                                  : batch_norm_slab_train_kernel<T, kVector<T>, false, E>;
  return launch(slab::config_for(plan, device), kernel, x, y, slab::division_for<T>(plan, shape), weight, bias,
                statistics, running, workspace.tickets, epilogue);
}

template <class T, class E>
cudaError_t launch_slab_backward(const BatchNormPlan& plan, const T* dy, const T* x, T* dx, const BatchNormShape& shape,
                                 const ChannelValues& weight, const ChannelStatistics& statistics,
                                 const ChannelValues& dweight, const ChannelValues& dbias, const Device& device,
                                 const E& epilogue) {
  const auto kernel = plan.channels_per_block > 1 ? batch_norm_slab_backward_kernel<T, kVector<T>, true, E>
                                                  : batch_norm_slab_backward_kernel<T, kVector<T>, false, E>;
  return launch(slab::config_for(plan, device), kernel, dy, x, dx, slab::division_for<T>(plan, shape), weight,
                statistics, dweight, dbias, epilogue);
}

// In namespace fastreg.
#define FASTREG_INSTANTIATE_SLAB(T, E)                                                                                 \
  template cudaError_t launch_slab_train<T, E>(const BatchNormPlan&, const T*, T*, const BatchNormShape&,              \
                                               const ChannelValues&, const ChannelValues&, const ChannelStatistics&,   \
                                               const RunningUpdate&, const Workspace&, const Device&, const E&);       \
  template cudaError_t launch_slab_backward<T, E>(const BatchNormPlan&, const T*, const T*, T*, const BatchNormShape&, \
                                                  const ChannelValues&, const ChannelStatistics&,                      \
                                                  const ChannelValues&, const ChannelValues&, const Device&, const E&)

}  // namespace fastreg
