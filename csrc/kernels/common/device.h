// The CUDA language as the kernels use it, and the one way to launch them. nvcc gets the real thing; any other
// compiler gets the host executor of tests/host_executor, which runs the same sources on the CPU.
#pragma once

#include "kernels/common/portable.h"

#if defined(__CUDACC__)

#include <cuda_runtime.h>

// Kernels declare shared memory through these two, because an executor without the compiler's help must give each
// block its own copy:  FASTREG_SHARED(float, partial, 32);  FASTREG_DYNAMIC_SHARED(float, buffer);
#define FASTREG_SHARED(T, name, count) __shared__ T name[count]
#define FASTREG_DYNAMIC_SHARED(T, name)                            \
  extern __shared__ __align__(16) unsigned char fastreg_dynamic[]; \
  T* name = reinterpret_cast<T*>(fastreg_dynamic)

#else

#include "host_executor/device.h"

#endif

namespace fastreg {

// How a kernel is started. Every launch of the project goes through launch().
struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
  // Blocks per cluster, along x. Needs sm_90 where it is not 1; the device decides whether more than 8 are possible.
  unsigned cluster = 1;
  // All blocks resident at once, or the launch fails: what a grid barrier needs.
  bool cooperative = false;
  // The kernel may start before the previous one of its stream has finished: it must call wait_for_previous_kernel()
  // before it touches anything that one writes (sm_90; older devices simply wait).
  bool overlap_previous = false;
};

#if defined(__CUDACC__)

namespace detail {
// f(the runtime's form of the configuration), once the kernel has asked for what not every device has.
template <class Kernel, class F>
cudaError_t with_native(const LaunchConfig& config, Kernel* kernel, F&& f) {
  if (config.shared_bytes > 48 * 1024) {
    // As much as the device has, not as much as this launch takes: the limit is the kernel's, and another thread may be
    // about to launch it with more.
    int device = 0, most = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (error != cudaSuccess) return error;
  }
  // Nor does a multiprocessor give it to shared memory unasked: too little, and the blocks are not resident together.
  if (config.cooperative) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    if (error != cudaSuccess) return error;
  }
  if (config.cluster > 8) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[3];
  unsigned count = 0;
  if (config.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim = {config.cluster, 1, 1};
    ++count;
  }
  if (config.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count].val.cooperative = 1;
    ++count;
  }
  if (config.overlap_previous) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count].val.programmaticStreamSerializationAllowed = 1;
    ++count;
  }
  cudaLaunchConfig_t native = {};
  native.gridDim = config.grid;
  native.blockDim = config.block;
  native.dynamicSmemBytes = config.shared_bytes;
  native.stream = config.stream;
  native.attrs = attributes;
  native.numAttrs = count;
  return f(native);
}
}  // namespace detail

namespace detail {
// Whether the blocks that have to be resident together can be, without a launch.
template <class Kernel>
cudaError_t residency(const LaunchConfig& config, const cudaLaunchConfig_t& native, Kernel* kernel) {
  if (config.cluster > 1) {
    int clusters = 0;
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &native);
    if (error != cudaSuccess) return error;
    if (clusters == 0) return cudaErrorInvalidClusterSize;
  }
  if (config.cooperative) {
    int device = 0, multiprocessors = 0, blocks = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess)
      error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, int(config.block.x), config.shared_bytes);
    if (error != cudaSuccess) return error;
    if (int64_t(blocks) * multiprocessors < int64_t(config.grid.x)) return cudaErrorCooperativeLaunchTooLarge;
  }
  return cudaSuccess;
}
}  // namespace detail

// A launch that the device refuses would spoil the graph that is being captured: there it is asked before.
template <class... Parameters, class... Arguments>
cudaError_t launch(const LaunchConfig& config, void (*kernel)(Parameters...), Arguments... arguments) {
  return detail::with_native(config, kernel, [&](const cudaLaunchConfig_t& native) {
    if (config.cooperative || config.cluster > 1) {
      cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
      cudaError_t error = cudaStreamIsCapturing(config.stream, &capture);
      if (error == cudaSuccess && capture != cudaStreamCaptureStatusNone)
        error = detail::residency(config, native, kernel);
      if (error != cudaSuccess) return error;
    }
    return cudaLaunchKernelEx(&native, kernel, Parameters(arguments)...);
  });
}

// Whether the code that the current device runs for a kernel was compiled for this virtual architecture (10 * major +
// minor) or a later one. Code compiled for an earlier one runs on a new device without its features.
template <class... Parameters>
cudaError_t is_compiled_for(int architecture, void (*kernel)(Parameters...), bool* compiled) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  *compiled = error == cudaSuccess && attributes.ptxVersion >= architecture;
  return error;
}

// How many of the launch's clusters fit on the device together.
template <class... Parameters>
cudaError_t max_resident_clusters(const LaunchConfig& config, void (*kernel)(Parameters...), int* clusters) {
  return detail::with_native(config, kernel, [&](const cudaLaunchConfig_t& native) {
    return cudaOccupancyMaxActiveClusters(clusters, kernel, &native);
  });
}

#else

namespace detail {
inline host_executor::Launch request_for(const LaunchConfig& config) {
  host_executor::Launch request;
  request.grid = config.grid;
  request.block = config.block;
  request.shared_bytes = config.shared_bytes;
  request.cluster = config.cluster;
  request.cooperative = config.cooperative;
  request.overlap_previous = config.overlap_previous;
  return request;
}
}  // namespace detail

template <class... Parameters, class... Arguments>
cudaError_t launch(const LaunchConfig& config, void (*kernel)(Parameters...), Arguments... arguments) {
  host_executor::Launch request = detail::request_for(config);
  request.kernel = reinterpret_cast<const void*>(kernel);
  request.run_thread = [kernel, arguments...] { kernel(Parameters(arguments)...); };
  return host_executor::launch(request);
}

template <class... Parameters>
cudaError_t is_compiled_for(int, void (*)(Parameters...), bool* compiled) {
  *compiled = true;
  return cudaSuccess;
}

template <class... Parameters>
cudaError_t max_resident_clusters(const LaunchConfig& config, void (*)(Parameters...), int* clusters) {
  *clusters = host_executor::max_resident_clusters(detail::request_for(config));
  return cudaSuccess;
}

#endif

}  // namespace fastreg
