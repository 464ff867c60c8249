// The slab kernels, as they are.
#include <algorithm>

#include "kernels/batch_norm/slab_launch.cuh"

namespace fastreg {

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
  const auto kernel = batch_norm_slab_train_kernel<float, kVector<float>, false, NoEpilogue>;
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

FASTREG_INSTANTIATE_SLAB(float, NoEpilogue);
FASTREG_INSTANTIATE_SLAB(half, NoEpilogue);
FASTREG_INSTANTIATE_SLAB(bfloat16, NoEpilogue);

}  // namespace fastreg
