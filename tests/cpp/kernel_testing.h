// What the tests of the kernels share: schedules, element types, tensors.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "host_executor/buffer.h"
#include "host_executor/executor.h"
#include "kernels/common/runtime.h"
#include "kernels/common/types.h"
#include "testing.h"

namespace testing {

// Under a sanitizer one order of threads says nearly as much as many; values need many.
// FASTREG_TEST_FULL=1 asks for more of them.
inline std::vector<host_executor::Schedule> kernel_schedules() {
  const bool full = std::getenv("FASTREG_TEST_FULL") != nullptr;
  auto schedules = host_executor::schedules(full ? 50 : 10);
  if (full || schedules.size() == 1) return schedules;
  switch (flavour) {
    case Flavour::plain:
      return schedules;
    case Flavour::asan:
      return {schedules[1], schedules[2], schedules[3]};
    default:
      return {schedules[3]};
  }
}

template <class T>
const char* type_name();
template <>
inline const char* type_name<float>() {
  return "fp32";
}
template <>
inline const char* type_name<double>() {
  return "fp64";
}
template <>
inline const char* type_name<fastreg::half>() {
  return "fp16";
}
template <>
inline const char* type_name<fastreg::bfloat16>() {
  return "bf16";
}

// f(T{}) for each element type.
template <class F>
void for_each_type(F&& f) {
  f(float{});
  f(fastreg::half{});
  f(fastreg::bfloat16{});
  f(double{});
}

// Distance of 1 to the next larger value.
template <class T>
double epsilon();
template <>
inline double epsilon<float>() {
  return 0x1p-23;
}
template <>
inline double epsilon<double>() {
  return 0x1p-52;
}
template <>
inline double epsilon<fastreg::half>() {
  return 0x1p-10;
}
template <>
inline double epsilon<fastreg::bfloat16>() {
  return 0x1p-7;
}

template <class T>
double to_double(T x) {
  return double(fastreg::to_compute(x));
}
template <class T>
T from_double(double x) {
  return fastreg::from_compute<T>(fastreg::compute_t<T>(x));
}

// Equal bit for bit, NaN included.
template <class T>
bool same_bits(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

// The virtual device as the launch functions are told of it: small blocks, so that boundaries are near.
inline fastreg::Device virtual_device(int threads = 64) {
  fastreg::Device device;
  device.multiprocessors = host_executor::Device().multiprocessors;
  device.threads = threads;
  return device;
}

// Runs the launch function under the schedule; a refusal or report fails the test under this name.
template <class Launch>
host_executor::Result run_clean(const host_executor::Schedule& schedule, bool count, const std::string& what,
                                Launch launch) {
  host_executor::Options options;
  options.schedule = schedule;
  options.count = count;
  options.buffers_only = true;
  cudaError_t error = cudaSuccess;
  host_executor::Result result = host_executor::run(options, [&] { error = launch(); });
  expect(error == cudaSuccess, what + ": " + cudaGetErrorName(error));
  expect(result.ok(), what + " under " + to_string(schedule) + ": " + result.message());
  return result;
}

}  // namespace testing
