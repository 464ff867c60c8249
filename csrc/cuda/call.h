// What a CUDA operator needs of torch around its launches: the device made current, its stream and size, random
// states, errors checked. The test extension that runs the kernels on the CPU replaces this file and nothing else.
#pragma once

#if defined(FASTREG_HOST_EXECUTOR)

#include "host_executor/extension/call.h"

#else

#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/common/runtime.h"
#include "kernels/dropout/dropout.h"

#define FASTREG_DISPATCH_KEY CUDA

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

inline int current_device_index() { return c10::cuda::current_device(); }
inline int refusing_device() { return current_device_index(); }  // for which refused launches are remembered

inline bool is_on_device(const at::Tensor& tensor) { return tensor.is_cuda(); }

inline bool is_capturing() {
  return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
}

// The next state of a generator, none: the current device's own. Safe to capture in a CUDA graph, where it is
// registered.
inline StateSource next_random_state(const std::optional<at::Generator>& given) {
  auto* generator =
      at::get_generator_or_default<at::CUDAGeneratorImpl>(given, at::cuda::detail::getDefaultCUDAGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  const at::PhiloxCudaState philox = generator->philox_cuda_state(kStateAdvance);
  StateSource state;
  if (philox.captured_) {
    state.seed_pointer = philox.seed_.ptr;
    state.offset_pointer = philox.offset_.ptr;
    state.offset = philox.offset_intragraph_;
  } else {
    state.seed = philox.seed_.val;
    state.offset = philox.offset_.val;
  }
  return state;
}

}  // namespace fastreg::cuda

#endif

namespace fastreg::cuda {

inline void check(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // reported here, and not to whoever asks next
  TORCH_CHECK(false, op, ": CUDA launch failed: ", cudaGetErrorString(error));
}

}  // namespace fastreg::cuda
