// What the launch functions need of the CUDA runtime: types only, so that any C++ compiler can include their headers.
#pragma once

#include <cstdint>

#if defined(FASTREG_HOST_EXECUTOR)
#include "host_executor/device.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace fastreg {

// Where a launch goes, and how large its grid should be.
struct Device {
  cudaStream_t stream = nullptr;
  int multiprocessors = 1;
  int threads = 256;  // per block, a power of two, at least 32
};

}  // namespace fastreg
