// Copies between global and shared memory that run beside the threads.
//
//   - copy_async: 4, 8 or 16 bytes per thread, waited for in groups by the thread that issued them (sm_80);
//   - bulk_load / bulk_store: whole slabs, issued by one thread (sm_90 only). A load reports to a TransactionBarrier in
//     shared memory, a store is waited for in groups by its thread.
//
// Waiting makes a copy visible to the waiting thread; other threads need a barrier besides.
#pragma once

#include "kernels/common/device.h"
#include "kernels/common/memory.h"

namespace fastreg {

// Counts arrivals of threads and bytes of bulk loads; its phase completes when all of both are in. Lives in shared
// memory; one thread initialises it, then __syncthreads().
struct alignas(8) TransactionBarrier {
  uint64_t state;
};

#if defined(__CUDACC__)

namespace detail {
__device__ __forceinline__ unsigned shared_address(const void* shared) {
  return unsigned(__cvta_generic_to_shared(shared));
}
}  // namespace detail

template <int Bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "copy_async: 4, 8 or 16 bytes");
#if __CUDA_ARCH__ >= 800
  if constexpr (Bytes == 16) {
    // Through L2 only: the data is read once.
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(detail::shared_address(shared)), "l"(global)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(detail::shared_address(shared)), "l"(global),
                 "n"(Bytes)
                 : "memory");
  }
#else
  using word = typename detail::raw<Bytes>::type;
  *static_cast<word*>(shared) = *static_cast<const word*>(global);
#endif
}

// Close the group of copies that this thread has issued since the last call.
__device__ __forceinline__ void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Return once all but the latest `Pending` groups of this thread are complete.
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ __forceinline__ void barrier_init(TransactionBarrier* barrier, unsigned arrivals) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], %1;\n"
      "fence.mbarrier_init.release.cluster;" ::"r"(detail::shared_address(barrier)),
      "r"(arrivals)
      : "memory");
}

__device__ __forceinline__ void barrier_arrive(TransactionBarrier* barrier) {
  asm volatile(
      "{ .reg .b64 token; mbarrier.arrive.shared::cta.b64 token, [%0]; }" ::"r"(detail::shared_address(barrier))
      : "memory");
}

// Arrive, and make the phase wait for this many bytes of bulk loads too.
__device__ __forceinline__ void barrier_arrive_expect(TransactionBarrier* barrier, unsigned bytes) {
  asm volatile("{ .reg .b64 token; mbarrier.arrive.expect_tx.shared::cta.b64 token, [%0], %1; }" ::"r"(
                   detail::shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// Return once the phase of this parity (0 for the first, then alternating) is complete.
__device__ __forceinline__ void barrier_wait(TransactionBarrier* barrier, unsigned parity) {
  unsigned complete;
  do {
    asm volatile(
        "{ .reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
        : "=r"(complete)
        : "r"(detail::shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!complete);
}

// Both addresses and the size are multiples of 16 bytes.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, unsigned bytes,
                                          TransactionBarrier* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   detail::shared_address(shared)),
               "l"(global), "r"(bytes), "r"(detail::shared_address(barrier))
               : "memory");
}

__device__ __forceinline__ void bulk_store(void* global, const void* shared, unsigned bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
               "r"(detail::shared_address(shared)), "r"(bytes)
               : "memory");
}

// Make this thread's writes to shared memory visible to bulk copies issued after it (or after a barrier past it).
__device__ __forceinline__ void bulk_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Return once all but the latest `Pending` groups have read their shared memory, which may then be written again.
template <int Pending>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}

// Return once all but the latest `Pending` groups are complete.
template <int Pending>
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
}

#endif

#else

template <int Bytes>
void copy_async(void* shared, const void* global) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "copy_async: 4, 8 or 16 bytes");
  host_executor::copy_async(shared, global, Bytes);
}
inline void copy_async_commit() { host_executor::copy_async_commit(); }
template <int Pending>
void copy_async_wait() {
  host_executor::copy_async_wait(Pending);
}

inline void barrier_init(TransactionBarrier* barrier, unsigned arrivals) {
  host_executor::transaction_init(barrier, arrivals);
}
inline void barrier_arrive(TransactionBarrier* barrier) { host_executor::transaction_arrive(barrier, 0); }
inline void barrier_arrive_expect(TransactionBarrier* barrier, unsigned bytes) {
  host_executor::transaction_arrive(barrier, bytes);
}
inline void barrier_wait(TransactionBarrier* barrier, unsigned parity) {
  host_executor::transaction_wait(barrier, parity);
}
inline void bulk_load(void* shared, const void* global, unsigned bytes, TransactionBarrier* barrier) {
  host_executor::bulk_load(shared, global, bytes, barrier);
}
inline void bulk_store(void* global, const void* shared, unsigned bytes) {
  host_executor::bulk_store(global, shared, bytes);
}
inline void bulk_fence() { host_executor::bulk_fence(); }
inline void bulk_commit() { host_executor::bulk_commit(); }
template <int Pending>
void bulk_wait_read() {
  host_executor::bulk_wait(Pending);
}
template <int Pending>
void bulk_wait() {
  host_executor::bulk_wait(Pending);
}

#endif

}  // namespace fastreg
