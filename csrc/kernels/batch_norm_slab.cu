// Launches of the slab kernels.
#include <algorithm>

#include "batch_norm_slab.cuh"
#include "batch_norm_tiers.h"

namespace fastreg {

namespace {

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

LaunchConfig config_for(const BatchNormPlan& plan, const Device& device) {
  LaunchConfig config;
  config.grid = dim3(unsigned(plan.blocks));
  config.block = dim3(unsigned(plan.threads));
  config.shared_bytes = size_t(plan.shared_bytes);
  config.cluster = unsigned(plan.cluster);
  config.stream = device.stream;
  return config;
}

}  // namespace

cudaError_t query_device_limits(int device, DeviceLimits* limits) {
  cudaError_t error = cudaSuccess;
  const auto get = [&](cudaDeviceAttr attribute) {
    int value = 0;
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
    return value;
  };
  limits->compute_capability = 10 * get(cudaDevAttrComputeCapabilityMajor) + get(cudaDevAttrComputeCapabilityMinor);
  limits->multiprocessors = get(cudaDevAttrMultiProcessorCount);
  limits->threads_per_block = std::min(kSlabThreads, get(cudaDevAttrMaxThreadsPerBlock));
  limits->threads_per_multiprocessor = get(cudaDevAttrMaxThreadsPerMultiProcessor);
  limits->shared_per_block = get(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  limits->shared_per_multiprocessor = get(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  limits->l2_bytes = get(cudaDevAttrL2CacheSize);
  limits->clusters[0] = limits->multiprocessors;
  const bool has_clusters = limits->compute_capability >= 90 && get(cudaDevAttrClusterLaunch) != 0;
  if (error != cudaSuccess || !has_clusters) return error;
  const auto kernel = batch_norm_slab_train_kernel<float, kVector<float>, false>;
  bool knows_clusters = false;
  error = is_compiled_for(90, kernel, &knows_clusters);
  if (error != cudaSuccess || !knows_clusters) return error;
  for (int i = 1; i < kClusterSizes; ++i) {
    LaunchConfig config;
    config.cluster = 1u << i;
    config.grid = dim3(config.cluster);
    config.block = dim3(unsigned(limits->threads_per_block));
    config.shared_bytes = size_t(limits->shared_per_block);
    if (max_resident_clusters(config, kernel, &limits->clusters[i]) != cudaSuccess) {
      cudaGetLastError();  // a size that the device does not know
      limits->clusters[i] = 0;
    }
  }
  return cudaSuccess;
}

template <class T>
cudaError_t launch_slab_train(const BatchNormPlan& plan, const T* x, T* y, const BatchNormShape& shape,
                              const ChannelValues& weight, const ChannelValues& bias,
                              const ChannelStatistics& statistics, const RunningUpdate& running,
                              const Workspace& workspace, const Device& device) {
  const auto kernel = plan.channels_per_block > 1 ? batch_norm_slab_train_kernel<T, kVector<T>, true>
                                                  : batch_norm_slab_train_kernel<T, kVector<T>, false>;
  return launch(config_for(plan, device), kernel, x, y, division_for<T>(plan, shape), weight, bias, statistics, running,
                workspace.tickets);
}

template <class T>
cudaError_t launch_slab_backward(const BatchNormPlan& plan, const T* dy, const T* x, T* dx, const BatchNormShape& shape,
                                 const ChannelValues& weight, const ChannelStatistics& statistics,
                                 const ChannelValues& dweight, const ChannelValues& dbias, const Device& device) {
  const auto kernel = plan.channels_per_block > 1 ? batch_norm_slab_backward_kernel<T, kVector<T>, true>
                                                  : batch_norm_slab_backward_kernel<T, kVector<T>, false>;
  return launch(config_for(plan, device), kernel, dy, x, dx, division_for<T>(plan, shape), weight, statistics, dweight,
                dbias);
}

#define FASTREG_INSTANTIATE(T)                                                                                    \
  template cudaError_t launch_slab_train(const BatchNormPlan&, const T*, T*, const BatchNormShape&,               \
                                         const ChannelValues&, const ChannelValues&, const ChannelStatistics&,    \
                                         const RunningUpdate&, const Workspace&, const Device&);                  \
  template cudaError_t launch_slab_backward(const BatchNormPlan&, const T*, const T*, T*, const BatchNormShape&,  \
                                            const ChannelValues&, const ChannelStatistics&, const ChannelValues&, \
                                            const ChannelValues&, const Device&)
FASTREG_INSTANTIATE(float);
FASTREG_INSTANTIATE(half);
FASTREG_INSTANTIATE(bfloat16);
#undef FASTREG_INSTANTIATE

}  // namespace fastreg
