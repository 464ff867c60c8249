// What tests use: run kernels under a schedule on a virtual device, and see what was wrong and what was counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace host_executor {

// The virtual device: as small as a kernel's structure allows, so that every boundary is near.
struct Device {
  int multiprocessors = 4;
  unsigned max_threads_per_block = 128;
  unsigned max_threads_per_multiprocessor = 256;
  unsigned max_blocks_per_multiprocessor = 8;
  size_t shared_per_block = 48 * 1024;
  size_t shared_per_block_optin = 227 * 1024;
  size_t shared_per_multiprocessor = 228 * 1024;
  size_t l2_bytes = 1 << 20;
  int major = 9, minor = 0;
  unsigned max_cluster = 16;
};

// The order in which threads run, and with it when an asynchronous copy is performed.
enum class Policy {
  fair,     // in turn; as many blocks at a time as there are multiprocessors; copies at their issue
  forward,  // the first thread that can run; blocks one after another; copies as late as possible
  reverse,  // the last thread that can run; blocks one after another, from the last; copies at their issue
  pct,      // random priorities per warp that change now and then; random residency, copies random
};

struct Schedule {
  Policy policy = Policy::fair;
  uint64_t seed = 0;  // of pct
};
std::string to_string(const Schedule& schedule);

// fair, forward, reverse, then `random` of pct with consecutive seeds. Where the environment has
// FASTREG_EXECUTOR_SCHEDULE (what a failure printed), that one alone.
std::vector<Schedule> schedules(int random);

struct Options {
  Schedule schedule;
  Device device;
  // Accesses through csrc/kernels/common/memory.h are counted. Costs time: one schedule is enough.
  bool count = false;
  // Such an access outside of every Buffer is an error, too.
  bool buffers_only = false;
};

// Traffic of one kind between threads and global memory, through csrc/kernels/common/memory.h.
struct Traffic {
  uint64_t accesses = 0;  // by threads
  uint64_t bytes = 0;     // sum over these accesses
  uint64_t requests = 0;  // by warps: one for the lanes that execute an instruction together
  uint64_t sectors = 0;   // of 32 bytes, distinct within a request
  Traffic& operator+=(const Traffic& other);
  // Share of the bytes of the touched sectors that were asked for; below 1 the kernel moves bytes in vain. Above 1
  // where lanes ask for the same byte.
  double sector_use() const { return sectors ? double(bytes) / (32.0 * double(sectors)) : 1.0; }
};

struct Counts {
  uint64_t launches = 0, blocks = 0, threads = 0, atomics = 0;
  Traffic load, store;                               // asynchronous copies included
  std::map<std::string, Traffic> load_of, store_of;  // the same, by the name of the Buffer
  uint64_t bulk_bytes = 0;                           // of these, moved by bulk copies (no warp requests)
  uint64_t shared_requests = 0;                      // accesses to shared memory through memory.h, by warps,
  uint64_t bank_conflicts = 0;                       // and how many more cycles than one each they take
};

Counts& operator+=(Counts& sum, const Counts& other);

struct Result {
  std::vector<std::string> errors;       // each names kernel, block, thread and schedule
  std::map<std::string, Counts> counts;  // by kernel, demangled; traffic only where Options::count
  int sanitizer_reports = 0;
  bool ok() const { return errors.empty() && sanitizer_reports == 0; }
  // Sum over the kernels whose names contain the text.
  Counts counts_of(const std::string& kernel) const;
  // All errors, or "".
  std::string message() const;
};

// Runs the function, which launches kernels, on a device of its own, and the kernels in stream order; returns when all
// are complete. Not reentrant.
Result run(const Options& options, const std::function<void()>& function);

// The options that launches outside of run() use (the schedule is then FASTREG_EXECUTOR_SCHEDULE or fair). Such a
// launch prints its errors and returns cudaErrorLaunchFailure.
Options& default_options();

}  // namespace host_executor
