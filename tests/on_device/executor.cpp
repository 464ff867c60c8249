// tests/host_executor/executor.h on a GPU: run() launches for real. There is one schedule, the device's own, and
// nothing is counted.
#include "host_executor/executor.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "cpp/testing.h"
#include "host_executor/buffer.h"

namespace host_executor {
namespace {

constexpr size_t kGuard = 256;  // keeps cudaMalloc's alignment
constexpr int kPoison = 0xFF;

bool bare() {
  static const bool value = std::getenv("FASTREG_ON_DEVICE_BARE") != nullptr;
  return value;
}
size_t guard_bytes() { return bare() ? 0 : kGuard; }

const testing::CutShort not_counted("a GPU does not count accesses");

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

std::vector<DeviceMemory*>& alive() {
  static std::vector<DeviceMemory*> all;
  return all;
}

}  // namespace

DeviceMemory::DeviceMemory(size_t bytes, size_t offset, std::string name)
    : offset_(offset), name_(std::move(name)), mirror_(bytes, char(kPoison)) {
  const size_t before = guard_bytes() + offset_, all = before + bytes + guard_bytes();
  // An empty buffer has an address, too.
  check(cudaMalloc(reinterpret_cast<void**>(&memory_), std::max(all, size_t(1))), "cudaMalloc");
  device_ = memory_ + before;
  if (!bare()) check(cudaMemset(memory_, kPoison, all), "cudaMemset");
  alive().push_back(this);
}

DeviceMemory::~DeviceMemory() {
  alive().erase(std::find(alive().begin(), alive().end(), this));
  cudaFree(memory_);  // an error here is an earlier one, which run() has reported
}

const char* DeviceMemory::read() const {
  if (stale_) check(cudaMemcpy(mirror_.data(), device_, size(), cudaMemcpyDeviceToHost), "download");
  stale_ = false;
  return mirror_.data();
}

char* DeviceMemory::write() {
  read();
  touched_ = true;
  return mirror_.data();
}

void DeviceMemory::poison() {
  std::fill(mirror_.begin(), mirror_.end(), char(kPoison));
  stale_ = false;
  touched_ = !bare();
}

void DeviceMemory::upload() {
  if (touched_) check(cudaMemcpy(device_, mirror_.data(), size(), cudaMemcpyHostToDevice), "upload");
  touched_ = false;
}

bool DeviceMemory::guards_intact() const {
  const size_t before = guard_bytes() + offset_;
  std::vector<char> guards(before + guard_bytes());
  check(cudaMemcpy(guards.data(), memory_, before, cudaMemcpyDeviceToHost), "guards");
  check(cudaMemcpy(guards.data() + before, device_ + size(), guard_bytes(), cudaMemcpyDeviceToHost), "guards");
  return std::all_of(guards.begin(), guards.end(), [](char byte) { return byte == char(kPoison); });
}

std::string to_string(const Schedule&) { return "the device's schedule"; }
std::vector<Schedule> schedules(int) { return {Schedule{}}; }

Counts Result::counts_of(const std::string&) const { throw not_counted; }

std::string Result::message() const {
  std::string all;
  for (const std::string& error : errors) all += error + "\n";
  return all;
}

Result run(const Options& options, const std::function<void()>& function) {
  check(cudaGetLastError(), "an earlier kernel");
  for (DeviceMemory* memory : alive()) memory->upload();
  function();
  Result result;
  for (const cudaError_t error : {cudaGetLastError(), cudaDeviceSynchronize()}) {
    if (error != cudaSuccess) result.errors.push_back(cudaGetErrorString(error));
  }
  if (!result.ok()) return result;
  for (DeviceMemory* memory : alive()) {
    memory->kernels_have_run();
    if (!bare() && !memory->guards_intact()) result.errors.push_back("write outside of " + memory->name());
  }
  if (result.ok() && options.count) throw not_counted;
  return result;
}

}  // namespace host_executor

// Some errors go away when they are read; one that stays has ended the context.
std::string testing::broken() {
  cudaGetLastError();
  const cudaError_t error = cudaDeviceSynchronize();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

bool testing::can_run() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    std::printf("no CUDA device, nothing has been tested: %s\n", cudaGetErrorString(error));
    return false;
  }
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, 0);
  std::printf("on %s, sm_%d%d\n", properties.name, properties.major, properties.minor);
  return true;
}
