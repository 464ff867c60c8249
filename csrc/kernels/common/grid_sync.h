// How blocks, and kernels of one stream, wait for each other. Every ticket and grid barrier of the project goes through
// here, so that there is one place in which the ordering of memory between blocks has to be right.
//
// Counters are unsigned words in global memory that start at 0 for the launch.
#pragma once

#include "kernels/common/device.h"

namespace fastreg {

#if defined(__CUDACC__)

// Add to a counter. What this thread wrote, or saw through a barrier, before the call is seen by whoever observes the
// new value through one of these functions. Returns the value before.
__device__ __forceinline__ unsigned take_ticket(unsigned* counter, unsigned increment = 1) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(increment)
               : "memory");
  return before;
}

// Return once the counter has reached the value. That takes microseconds: who waits for most of a minute waits for
// ever, and ends the launch with an error.
__device__ __forceinline__ void wait_at_least(const unsigned* counter, unsigned value) {
  constexpr unsigned kMostTurns = 100'000'000;
  unsigned seen, turn = 0;
  for (;;) {
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    if (seen >= value) break;
    if (++turn == kMostTurns) __trap();
    __nanosleep(20);
  }
  asm volatile("fence.acq_rel.gpu;" ::: "memory");  // once, where each acquiring load would be one
}

// Programmatic dependent launch (LaunchConfig::overlap_previous). Return once the previous kernel of the stream is
// complete and its writes are visible.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// This block no longer needs the device to itself: the next kernel may start once all blocks have said so or exited.
// It makes nothing visible; the next kernel still has to wait.
__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#else

inline unsigned take_ticket(unsigned* counter, unsigned increment = 1) {
  return host_executor::fetch_add_ordered(counter, increment);
}
inline void wait_at_least(const unsigned* counter, unsigned value) { host_executor::wait_at_least(counter, value); }
inline void wait_for_previous_kernel() { host_executor::wait_for_previous_kernel(); }
inline void allow_next_kernel() { host_executor::allow_next_kernel(); }

#endif

// For all threads of a block: true in the block that calls it last of `blocks`, and only there. That block then sees
// what every thread of the others wrote before the call.
__device__ __forceinline__ bool is_last_block(unsigned* counter, unsigned blocks) {
  __syncthreads();
  const bool last = threadIdx.x == 0 && take_ticket(counter) == blocks - 1;
  return __syncthreads_or(last);
}

// The two halves of a barrier among `blocks` co-resident blocks (LaunchConfig::cooperative), for all threads of each:
// work between them overlaps the wait. What a thread wrote before its block arrived is seen by every thread whose block
// has waited. round: how many barriers this counter has served in this launch.
__device__ __forceinline__ void grid_arrive(unsigned* counter) {
  __syncthreads();
  if (threadIdx.x == 0) take_ticket(counter);
}
__device__ __forceinline__ void grid_wait(const unsigned* counter, unsigned blocks, unsigned round = 0) {
  if (threadIdx.x == 0) wait_at_least(counter, blocks * (round + 1));
  __syncthreads();
}

__device__ __forceinline__ void grid_barrier(unsigned* counter, unsigned blocks, unsigned round) {
  grid_arrive(counter);
  grid_wait(counter, blocks, round);
}

}  // namespace fastreg
