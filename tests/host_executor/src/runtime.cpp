// The host side: the virtual device, launches and what it refuses, schedules, run().
#include "host_executor/runtime.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

#include "machine.h"
#include "sanitizer.h"

namespace host_executor {
namespace {

// Kernels run on one thread at a time, whichever calls.
std::recursive_mutex& execution() {
  static std::recursive_mutex mutex;
  return mutex;
}

bool inside_run = false;
cudaError_t last_error = cudaSuccess;

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

const Device& device() { return inside_run ? machine.options().device : default_options().device; }

// "pct:17". False where the text is no schedule.
bool parse(const char* text, Schedule& schedule) {
  for (const Policy policy : {Policy::fair, Policy::forward, Policy::reverse, Policy::pct}) {
    const std::string name = to_string({policy, 0});
    const std::string bare = name.substr(0, name.find(':'));
    if (std::strncmp(text, bare.c_str(), bare.size()) != 0) continue;
    const char* rest = text + bare.size();
    schedule = {policy, *rest == ':' ? std::strtoull(rest + 1, nullptr, 10) : 0};
    return *rest == 0 || *rest == ':';
  }
  return false;
}

bool schedule_from_environment(Schedule& schedule) {
  const char* text = std::getenv("FASTREG_EXECUTOR_SCHEDULE");
  if (!text) return false;
  if (parse(text, schedule)) return true;
  std::fprintf(stderr, "FASTREG_EXECUTOR_SCHEDULE must be fair, forward, reverse or pct:SEED, got %s\n", text);
  std::exit(2);
}

// How many multiprocessors launches get: all, or as few as FASTREG_EXECUTOR_MULTIPROCESSORS says, which the device's
// properties do not tell, as under MPS.
int granted_multiprocessors() {
  const char* const few = std::getenv("FASTREG_EXECUTOR_MULTIPROCESSORS");
  return few ? std::min(std::atoi(few), device().multiprocessors) : device().multiprocessors;
}

cudaError_t refusal(const Launch& launch) {
  const Device& limits = device();
  const uint64_t threads = uint64_t(launch.block.x) * launch.block.y * launch.block.z;
  const uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  if (threads == 0 || threads > limits.max_threads_per_block || launch.block.z > 64) {
    return cudaErrorInvalidConfiguration;
  }
  if (blocks == 0 || launch.grid.x > 0x7FFFFFFFu || launch.grid.y > 65535 || launch.grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (launch.shared_bytes > limits.shared_per_block_optin) return cudaErrorInvalidValue;
  const int resident = max_resident_blocks(unsigned(threads), launch.shared_bytes);
  if (resident == 0) return cudaErrorLaunchOutOfResources;
  if (launch.cluster != 1) {
    if (limits.major < 9) return cudaErrorNotSupported;
    if (launch.cluster == 0 || launch.cluster > limits.max_cluster || launch.grid.x % launch.cluster != 0 ||
        unsigned(resident * granted_multiprocessors()) < launch.cluster) {
      return cudaErrorInvalidClusterSize;
    }
  }
  if (launch.cooperative && blocks > uint64_t(resident) * unsigned(granted_multiprocessors())) {
    return cudaErrorCooperativeLaunchTooLarge;
  }
  return cudaSuccess;
}

void enqueue(const Launch& launch) {
  auto grid = std::make_unique<Grid>();
  grid->launch = launch;
  grid->name = kernel_name(launch.kernel);
  grid->counts = &machine.result().counts[grid->name];
  machine.enqueue(std::move(grid));
}

// Starts the machine for one operation outside of run(), and says how it went.
template <class Operation>
cudaError_t run_at_once(Operation operation) {
  Options options = default_options();
  schedule_from_environment(options.schedule);
  machine.reset(options);
  operation();
  machine.drain();
  for (const std::string& error : machine.result().errors) std::fprintf(stderr, "host executor: %s\n", error.c_str());
  return machine.result().ok() ? cudaSuccess : cudaErrorLaunchFailure;
}

template <class Operation>
cudaError_t submit(Operation operation) {
  if (!inside_run) return remember(run_at_once(operation));
  operation();
  return cudaSuccess;
}

}  // namespace

std::string to_string(const Schedule& schedule) {
  switch (schedule.policy) {
    case Policy::fair:
      return "fair";
    case Policy::forward:
      return "forward";
    case Policy::reverse:
      return "reverse";
    default:
      return "pct:" + std::to_string(schedule.seed);
  }
}

std::vector<Schedule> schedules(int random) {
  Schedule replay;
  if (schedule_from_environment(replay)) return {replay};
  std::vector<Schedule> all = {{Policy::fair, 0}, {Policy::forward, 0}, {Policy::reverse, 0}};
  for (int i = 1; i <= random; ++i) all.push_back({Policy::pct, uint64_t(i)});
  return all;
}

Options& default_options() {
  static Options options;
  return options;
}

Result run(const Options& options, const std::function<void()>& function) {
  const std::lock_guard<std::recursive_mutex> lock(execution());
  watch_sanitizers();
  const int reports = sanitizer_reports();
  machine.reset(options);
  inside_run = true;
  function();
  machine.drain();
  inside_run = false;
  Result result = std::move(machine.result());
  result.sanitizer_reports = sanitizer_reports() - reports;
  return result;
}

Traffic& Traffic::operator+=(const Traffic& other) {
  accesses += other.accesses;
  bytes += other.bytes;
  requests += other.requests;
  sectors += other.sectors;
  return *this;
}

Counts& operator+=(Counts& sum, const Counts& other) {
  sum.launches += other.launches;
  sum.blocks += other.blocks;
  sum.threads += other.threads;
  sum.atomics += other.atomics;
  sum.load += other.load;
  sum.store += other.store;
  for (const auto& [buffer, traffic] : other.load_of) sum.load_of[buffer] += traffic;
  for (const auto& [buffer, traffic] : other.store_of) sum.store_of[buffer] += traffic;
  sum.bulk_bytes += other.bulk_bytes;
  sum.shared_requests += other.shared_requests;
  sum.bank_conflicts += other.bank_conflicts;
  return sum;
}

Counts Result::counts_of(const std::string& kernel) const {
  Counts sum;
  for (const auto& [name, one] : counts) {
    if (name.find(kernel) != std::string::npos) sum += one;
  }
  return sum;
}

std::string Result::message() const {
  std::string text;
  for (const std::string& error : errors) text += (text.empty() ? "" : "\n") + error;
  if (sanitizer_reports) text += (text.empty() ? "" : "\n") + std::to_string(sanitizer_reports) + " sanitizer reports";
  return text;
}

int refused_launches = 0;

cudaError_t launch(const Launch& launch) {
  const std::lock_guard<std::recursive_mutex> lock(execution());
  const cudaError_t error = refusal(launch);
  if (error != cudaSuccess) {
    ++refused_launches;
    return remember(error);
  }
  return submit([&] { enqueue(launch); });
}

int max_resident_blocks(unsigned threads, size_t shared_bytes) {
  const Device& limits = device();
  if (threads == 0 || threads > limits.max_threads_per_block || shared_bytes > limits.shared_per_block_optin) return 0;
  constexpr size_t kReserved = 1024;  // of each block's shared memory, for the system
  const size_t warps = (threads + 31) / 32;
  size_t blocks = limits.max_threads_per_multiprocessor / 32 / warps;
  blocks = std::min<size_t>(blocks, limits.max_blocks_per_multiprocessor);
  return int(std::min(blocks, limits.shared_per_multiprocessor / (shared_bytes + kReserved)));
}

int max_resident_clusters(const Launch& launch) {
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  const int blocks = max_resident_blocks(threads, launch.shared_bytes) * device().multiprocessors;
  if (launch.cluster == 0 || launch.cluster > device().max_cluster) return 0;
  return blocks / int(launch.cluster);
}

}  // namespace host_executor

using host_executor::device;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDeviceFunction:
      return "cudaErrorInvalidDeviceFunction";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorLaunchOutOfResources:
      return "cudaErrorLaunchOutOfResources";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorCooperativeLaunchTooLarge:
      return "cudaErrorCooperativeLaunchTooLarge";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorInvalidClusterSize:
      return "cudaErrorInvalidClusterSize";
    default:
      return "cudaErrorUnknown";
  }
}

const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaPeekAtLastError() { return host_executor::last_error; }
cudaError_t cudaGetLastError() { return std::exchange(host_executor::last_error, cudaSuccess); }

cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  if (index != 0) return host_executor::remember(cudaErrorInvalidDevice);
  const host_executor::Device& limits = device();
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = int(limits.max_threads_per_block);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = int(limits.shared_per_block);
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = limits.multiprocessors;
      break;
    case cudaDevAttrL2CacheSize:
      *value = int(limits.l2_bytes);
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = int(limits.max_threads_per_multiprocessor);
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = limits.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = limits.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = int(limits.shared_per_multiprocessor);
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = int(limits.shared_per_block_optin);
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *value = int(limits.max_blocks_per_multiprocessor);
      break;
    case cudaDevAttrClusterLaunch:
      *value = limits.major >= 9;
      break;
    default:
      return host_executor::remember(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaDeviceSynchronize(); }

cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard<std::recursive_mutex> lock(host_executor::execution());
  if (!host_executor::inside_run) return cudaSuccess;  // nothing is ever left to do
  host_executor::machine.drain();
  return host_executor::machine.result().errors.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  const std::lock_guard<std::recursive_mutex> lock(host_executor::execution());
  return host_executor::submit([=] { host_executor::machine.enqueue([=] { std::memset(address, value, bytes); }); });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  const std::lock_guard<std::recursive_mutex> lock(host_executor::execution());
  return host_executor::submit([=] { host_executor::machine.enqueue([=] { std::memcpy(to, from, bytes); }); });
}
