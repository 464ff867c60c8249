// Reduction to one result per channel: of the threads that share a column, then of the blocks that share a channel.
// Results are of a type R with merge(R, R), pack and unpack.
#pragma once

#include "kernels/batch_norm/arithmetic.h"
#include "kernels/batch_norm/channel_walk.cuh"
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

// A partial result in memory: what a split knows of a channel, less its count, which follows from the division.
template <class A>
struct TwoPairs {
  Vector<A, 2> first, second;
};
template <class A>
__device__ __forceinline__ void store(TwoPairs<A>* address, const TwoPairs<A>& pairs) {
  store(&address->first, pairs.first);
  store(&address->second, pairs.second);
}
template <class A>
__device__ __forceinline__ TwoPairs<A> load_coherent(const TwoPairs<A>* address) {
  return {load_coherent(&address->first), load_coherent(&address->second)};
}

template <class A>
__device__ __forceinline__ Vector<A, 2> pack(const Moments<A>& m) {
  return {{m.mean, m.m2}};
}
template <class A>
__device__ __forceinline__ Vector<A, 2> pack(const GradSums<A>& s) {
  return {{s.dy, s.dy_x}};
}
template <class A>
__device__ __forceinline__ TwoPairs<A> pack(const SlopeSums<A>& s) {
  return {{{s.dy, s.dy_x}}, {{s.slope, A(0)}}};
}
template <class A>
__device__ __forceinline__ void unpack(const Vector<A, 2>& v, A count, Moments<A>& m) {
  m = {count, v.element[0], v.element[1]};
}
template <class A>
__device__ __forceinline__ void unpack(const Vector<A, 2>& v, A, GradSums<A>& s) {
  s = {v.element[0], v.element[1]};
}
template <class A>
__device__ __forceinline__ void unpack(const TwoPairs<A>& pairs, A, SlopeSums<A>& s) {
  s = {{pairs.first.element[0], pairs.first.element[1]}, pairs.second.element[0]};
}

// From each thread's r[k] to the channel's: true in the threads that then hold it, one for each channel, in the block
// that finishes last.
template <class A, int V, bool kRows, class R>
__device__ __forceinline__ bool reduce_grid(R (&r)[Walk<V, kRows>::kChannels], const Walk<V, kRows>& walk,
                                            const Division& d, const Workspace& workspace) {
  constexpr int K = Walk<V, kRows>::kChannels;
  FASTREG_DYNAMIC_SHARED(R, shared);
  const int row = int(threadIdx.x) / d.columns, rows = int(blockDim.x) / d.columns;
  const bool inside = walk.channel(0) < d.channels;
  auto* partials = static_cast<decltype(pack(r[0]))*>(workspace.partials);

  reduce_columns(r, shared, d.columns);
  if (gridDim.y > 1) {
    if (row == 0 && inside)
#pragma unroll
      for (int k = 0; k < K; ++k) store(partials + int64_t(blockIdx.y) * d.channels + walk.channel(k), pack(r[k]));
    if (!is_last_block(workspace.tickets + blockIdx.x, gridDim.y)) return false;

#pragma unroll
    for (int k = 0; k < K; ++k) r[k] = R{};
    if (inside)
      for (int64_t split = row; split < gridDim.y; split += rows) {
        const int64_t vectors = d.length_of(split);
#pragma unroll
        for (int k = 0; k < K; ++k) {
          R partial;
          unpack(load_coherent(partials + split * d.channels + walk.channel(k)), A(kRows ? vectors : vectors * V),
                 partial);
          r[k] = merge(r[k], partial);
        }
      }
    reduce_columns(r, shared, d.columns);
  }
  return row == 0 && inside;
}

}  // namespace fastreg
