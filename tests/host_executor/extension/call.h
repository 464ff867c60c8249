// csrc/cuda/call.h for the CPU: the operators of csrc/cuda with their kernels in the host executor, for CPU tensors.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>

#include <cstdlib>

#include "kernels/common/runtime.h"
#include "kernels/dropout/dropout.h"

#define FASTREG_DISPATCH_KEY CPU

namespace fastreg::cuda {

struct Guard {
  explicit Guard(const at::Tensor&) {}
};

// Small, so that every boundary between warps, blocks and splits is near.
inline Device current_device() {
  Device device;
  device.multiprocessors = 4;
  device.threads = 64;
  return device;
}

inline int current_device_index() { return 0; }
// With fewer multiprocessors it refuses what another one does not.
inline int refusing_device() {
  const char* const few = std::getenv("FASTREG_EXECUTOR_MULTIPROCESSORS");
  return few == nullptr ? 0 : 1 + std::atoi(few);
}

inline bool is_on_device(const at::Tensor&) { return true; }
inline bool is_capturing() { return false; }

// What the CPU backend draws, so that the same tests hold for both.
inline StateSource next_random_state(const std::optional<at::Generator>& given) {
  auto* generator = at::get_generator_or_default<at::CPUGeneratorImpl>(given, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  StateSource state;
  state.seed = generator->random64() % ~uint64_t(0) - (uint64_t(1) << 63);
  return state;
}

}  // namespace fastreg::cuda
