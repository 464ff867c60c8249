// What every CUDA operator does around its launches: the device made current, its stream and size, errors checked.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../kernels/runtime.h"

namespace fastreg::cuda {

// Makes a tensor's device current while it lives.
class Guard {
 public:
  explicit Guard(const at::Tensor& tensor) : guard_(tensor.device()) {}

 private:
  c10::cuda::CUDAGuard guard_;
};

// The current stream of the current device, and as many multiprocessors as this process may use of it.
inline Device current_device() {
  Device device;
  device.stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(
      cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, c10::cuda::current_device()));
  return device;
}

inline void check(const char* op, cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, op, ": CUDA launch failed: ", cudaGetErrorString(error));
}

}  // namespace fastreg::cuda
