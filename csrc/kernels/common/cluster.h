// Thread block clusters: their barrier, whole and split, and each other's shared memory. Before sm_90 there are none,
// and a block is a cluster of one.
#pragma once

#include "kernels/common/device.h"

namespace fastreg {

#if defined(__CUDACC__)

__device__ __forceinline__ unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

__device__ __forceinline__ unsigned cluster_size() {
#if __CUDA_ARCH__ >= 900
  unsigned size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  return 1;
#endif
}

// The two halves of a cluster barrier: work between them overlaps the wait. What a thread wrote before it arrived is
// seen by every thread of the cluster that has waited. All threads of a warp must call them together.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

// The same for who has written nothing that others of the cluster read: it waits for no store.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

// The same variable in the shared memory of another block of the cluster. That block must have started (a cluster
// barrier tells) and must not exit before the last access (another one).
template <class T>
__device__ __forceinline__ T* cluster_peer(T* shared, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  T* peer;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(shared), "r"(rank));
  return peer;
#else
  return shared;
#endif
}

#else

inline unsigned cluster_rank() { return host_executor::cluster_rank(); }
inline unsigned cluster_size() { return host_executor::cluster_size(); }
inline void cluster_arrive() { host_executor::cluster_arrive(true); }
inline void cluster_arrive_relaxed() { host_executor::cluster_arrive(false); }
inline void cluster_wait() { host_executor::cluster_wait(); }

template <class T>
T* cluster_peer(T* shared, unsigned rank) {
  return static_cast<T*>(host_executor::cluster_peer(shared, rank));
}

#endif

__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

}  // namespace fastreg
