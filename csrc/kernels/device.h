// The CUDA language as the kernels use it. nvcc gets the real thing; any other compiler gets the host executor of
// tests/host_executor, which runs the same sources on the CPU.
#pragma once

#include "portable.h"

#if defined(__CUDACC__)

#include <cuda_runtime.h>

// Kernels declare shared memory through these two, because an executor without the compiler's help must give each
// block its own copy:  FASTREG_SHARED(float, partial, 32);  FASTREG_DYNAMIC_SHARED(float, buffer);
#define FASTREG_SHARED(T, name, count) __shared__ T name[count]
#define FASTREG_DYNAMIC_SHARED(T, name)                              \
  extern __shared__ __align__(16) unsigned char fastreg_dynamic[]; \
  T* name = reinterpret_cast<T*>(fastreg_dynamic)

namespace fastreg {

// How a kernel is started. Every launch of the project goes through launch().
struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};

template <class... Parameters, class... Arguments>
cudaError_t launch(const LaunchConfig& config, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t native = {};
  native.gridDim = config.grid;
  native.blockDim = config.block;
  native.dynamicSmemBytes = config.shared_bytes;
  native.stream = config.stream;
  return cudaLaunchKernelEx(&native, kernel, Parameters(arguments)...);
}

}  // namespace fastreg

#else

#include "host_executor/device.h"

#endif
