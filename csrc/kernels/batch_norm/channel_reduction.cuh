// Reduction to one result per channel: of the threads that share a column, then of the blocks that share a channel.
// Results are of a type R with merge(R, R), pack and unpack.
#pragma once

#include "kernels/batch_norm/arithmetic.h"
#include "kernels/batch_norm/channel_walk.cuh"
#include "kernels/batch_norm/streamed_plan.h"
#include "kernels/common/device.h"
#include "kernels/common/grid_sync.h"
#include "kernels/common/memory.h"

namespace fastreg {

// r[k] of the first thread of each column becomes the merger of its column's, in a fixed order. All threads call it.
// shared: K results for half of the threads. Between two calls with the same shared memory there must be a barrier.
template <int K, class R>
__device__ __forceinline__ void reduce_columns(R (&r)[K], R* shared, int columns) {
  // The upper half of the threads that are left hands over to the lower half, each through a slot of its own.
  const int slots = int(blockDim.x) / 2, thread = int(threadIdx.x);
  R* const mine = shared + thread % slots;
  for (int half = slots; half >= columns; half /= 2) {
    if (thread >= half && thread < 2 * half)
#pragma unroll
      for (int k = 0; k < K; ++k) mine[k * slots] = r[k];
    __syncthreads();
    if (thread < half)
#pragma unroll
      for (int k = 0; k < K; ++k) r[k] = merge(r[k], shared[(thread + half) % slots + k * slots]);
  }
}

// A partial result in memory: what a split knows of a channel. The count of moments follows from the division.
template <class A>
struct Four {
  static constexpr int kPerAccess = 16 / int(sizeof(A));
  Vector<A, kPerAccess> part[4 / kPerAccess];

  __device__ __forceinline__ A& operator[](int i) { return part[i / kPerAccess].element[i % kPerAccess]; }
  __device__ __forceinline__ A operator[](int i) const { return part[i / kPerAccess].element[i % kPerAccess]; }
};
template <class A>
__device__ __forceinline__ Four<A> four(A a, A b, A c, A d) {
  Four<A> f;
  f[0] = a, f[1] = b, f[2] = c, f[3] = d;
  return f;
}
template <class A>
__device__ __forceinline__ void store(Four<A>* address, const Four<A>& value) {
  for (int i = 0; i < 4 / Four<A>::kPerAccess; ++i) store(&address->part[i], value.part[i]);
}
template <class A>
__device__ __forceinline__ Four<A> load_coherent(const Four<A>* address) {
  Four<A> value;
  for (int i = 0; i < 4 / Four<A>::kPerAccess; ++i) value.part[i] = load_coherent(&address->part[i]);
  return value;
}

template <class A>
__device__ __forceinline__ Four<A> pack(const Moments<A>& m) {
  return four(m.centre, m.delta, m.m2, m.unit);
}
template <class A>
__device__ __forceinline__ Vector<A, 2> pack(const GradSums<A>& s) {
  return {{s.dy, s.dy_x}};
}
template <class A>
__device__ __forceinline__ Four<A> pack(const SlopeSums<A>& s) {
  return four(s.dy, s.dy_x, s.slope, A(0));
}
template <class A>
__device__ __forceinline__ void unpack(const Four<A>& v, A count, Moments<A>& m) {
  m = {count, v[0], v[1], v[2], v[3]};
}
template <class A>
__device__ __forceinline__ void unpack(const Vector<A, 2>& v, A, GradSums<A>& s) {
  s = {v.element[0], v.element[1]};
}
template <class A>
__device__ __forceinline__ void unpack(const Four<A>& v, A, SlopeSums<A>& s) {
  s = {{v[0], v[1]}, v[2]};
}
template <class R>
using Packed = decltype(pack(R{}));

constexpr int kLeastThreads = 32;  // of a block
static_assert(kSplitsTogether <= kLeastThreads && kMostSplits / kSplitsTogether <= kLeastThreads, "see collect");

// Counters that reduce_grid needs: for each group of channels one of each set of splits, and one of the sets.
inline int64_t reduction_tickets(int64_t groups, int64_t splits) {
  const int64_t sets = (splits + kSplitsTogether - 1) / kSplitsTogether;
  return groups * (sets > 1 ? sets + 1 : 1);
}

// From each thread's r[k] to the channel's: true in the threads that then hold it, one for each channel, in the block
// that finishes last. Splits are merged by sets, each by the block that finishes last of it, and then the sets: no
// block reads many partial results one after the other, and the order is the same whichever blocks these are.
template <class A, int V, bool kRows, class R>
__device__ __forceinline__ bool reduce_grid(R (&r)[Walk<V, kRows>::kChannels], const Walk<V, kRows>& walk,
                                            const Division& d, const Workspace& workspace) {
  constexpr int K = Walk<V, kRows>::kChannels;
  FASTREG_DYNAMIC_SHARED(R, shared);
  const int row = int(threadIdx.x) / d.columns, rows = int(blockDim.x) / d.columns;
  const bool inside = walk.channel(0) < d.channels;
  const auto at = [&](int split, int k) {
    return static_cast<Packed<R>*>(workspace.partials) + int64_t(split) * d.channels + walk.channel(k);
  };
  const auto publish = [&](int split) {
    if (row == 0 && inside)
#pragma unroll
      for (int k = 0; k < K; ++k) store(at(split, k), pack(r[k]));
  };
  // From the results of `number` neighbours of `each` splits, kept at the first of these. A thread merges none before
  // it has asked for several; in planes, where a block has a thread for each of them, there is one for it at most.
  const auto collect = [&](int first, int number, int each) {
#pragma unroll
    for (int k = 0; k < K; ++k) r[k] = R{};
    constexpr int kLoads = K * (sizeof(Packed<R>) > 16 ? 2 : 1), kAhead = kRows && kLoads < 4 ? 4 / kLoads : 1;
    const auto merge_next = [&](int i) {
      Packed<R> partials[kAhead][K];
#pragma unroll
      for (int u = 0; u < kAhead; ++u)
#pragma unroll
        for (int k = 0; k < K; ++k)
          if (i + u * rows < number) partials[u][k] = load_coherent(at(first + (i + u * rows) * each, k));
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        if (i + u * rows >= number) break;
        const A count = A(d.length_of(first + (i + u * rows) * each, each) * (kRows ? 1 : V));
#pragma unroll
        for (int k = 0; k < K; ++k) {
          R partial;
          unpack(partials[u][k], count, partial);
          r[k] = merge(r[k], partial);
        }
      }
    };
    if constexpr (kRows) {
      if (inside)
#pragma unroll 1
        for (int i = row; i < number; i += kAhead * rows) merge_next(i);
    } else if (row < number) {
      merge_next(row);
    }
    reduce_columns(r, shared, d.columns);
  };

  reduce_columns(r, shared, d.columns);
  const int splits = int(gridDim.y), sets = (splits + kSplitsTogether - 1) / kSplitsTogether;
  if (splits > 1) {
    unsigned* const tickets = workspace.tickets + int64_t(blockIdx.x) * (sets > 1 ? sets + 1 : 1);
    const int set = int(blockIdx.y) / kSplitsTogether, first = set * kSplitsTogether;
    const int in_set = splits - first < kSplitsTogether ? splits - first : kSplitsTogether;
    publish(int(blockIdx.y));
    if (!is_last_block(tickets + set, unsigned(in_set))) return false;
    collect(first, in_set, 1);
    if (sets > 1) {
      publish(first);
      if (!is_last_block(tickets + sets, unsigned(sets))) return false;
      collect(0, sets, kSplitsTogether);
    }
  }
  return row == 0 && inside;
}

}  // namespace fastreg
