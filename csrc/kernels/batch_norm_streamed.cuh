// Batch norm that streams: any shape, any architecture. Training: two passes over memory, one launch each. Evaluation:
// one.
//
// Algorithm. Pass one reduces every channel to two numbers (moments forward, gradient sums backward), divided over
// `splits` blocks a channel; the block that finishes a channel last merges the partial results, in an order that does
// not depend on which block that is, and computes what pass two needs. Pass two is elementwise. No floating-point
// atomics: results repeat bit for bit.
//
// Thread mapping. Two layouts, one code: a thread moves vectors of V elements and keeps V accumulators.
//   planes  a block works on one channel, blockIdx.x; its threads walk over the channel's vectors. All V elements of a
//           vector belong to the channel.
//   rows    a block works on `columns` neighbouring vectors of channels; blockDim.x / columns threads share a column
//           and walk down the rows. Element e of a vector belongs to channel V column + e.
// blockIdx.y is the split in both. V is 16 bytes' worth where that divides the channel's runs, else 1.
//
// Numerics. fp32 arithmetic for 16- and 32-bit types, fp64 for fp64. Each accumulator shifts by the first value that
// it meets, so that sums of squares lose nothing to a large mean; results are merged by Chan's rule, with means kept
// relative to the channel's centre, its first element.
//
// Bytes per element, s = sizeof(T): training forward 3 s (two reads, one write), backward 5 s (dy and x read twice, dx
// written); evaluation 2 s, backward in one launch 3 s, without the parameters' gradients 2 s.
#pragma once

#include "batch_norm.h"
#include "batch_norm_math.h"
#include "channel_reduction.cuh"
#include "channel_walk.cuh"
#include "device.h"
#include "memory.h"

namespace fastreg {

// ---- Forward ----

template <class T, int V, bool kRows>
__global__ void __launch_bounds__(256, 2)
    batch_norm_moments_kernel(const T* x, Division d, ChannelStatistics statistics, RunningUpdate running,
                              Workspace workspace) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  Walk<V, kRows> walk(d);
  constexpr int K = Walk<V, kRows>::kChannels;

  MomentSums<T, V> sums;
  walk.for_each([&](const auto& offsets) {
    constexpr int kCount = sizeof(offsets) / sizeof(offsets[0]);
    Access v[kCount];
#pragma unroll
    for (int u = 0; u < kCount; ++u) v[u] = load(reinterpret_cast<const Access*>(x + offsets[u]));
    if (sums.empty()) sums.start(v[0]);
#pragma unroll
    for (int u = 0; u < kCount; ++u) sums.add(v[u]);
  });

  Values<T, K> centre = {};
  if (walk.channel(0) < d.channels) centre = to_compute(load(walk.centres(x)));
  Moments<A> r[K];
  sums.moments(centre, r);

  if (!reduce_grid<A, V, kRows>(r, walk, d, workspace)) return;
  const A factor = running_factor<A>(running);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const Normalisation<A> n = normalisation_of(centre.value[k], r[k], statistics.eps);
    write_statistics<T>(n, r[k], d.channels, walk.channel(k), statistics, running, factor);
  }
}

// num_batches_tracked, if not null, is incremented here: the kernel before has read it, in all its blocks.
template <class T, int V, bool kRows>
__global__ void __launch_bounds__(256)
    batch_norm_normalize_kernel(const T* x, T* y, Division d, ChannelValues weight, ChannelValues bias,
                                ChannelStatistics statistics, int64_t* num_batches_tracked) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  if (num_batches_tracked != nullptr && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
    store(num_batches_tracked, load(num_batches_tracked) + 1);

  Walk<V, kRows> walk(d);
  constexpr int K = Walk<V, kRows>::kChannels;
  if (walk.left() == 0) return;
  ForwardStep<A> steps[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t c = walk.channel(k);
    steps[k] = forward_step<T>(read_statistics<T>(statistics, d.channels, c), c, weight, bias);
  }
  walk.for_each([&](const auto& offsets) {
    constexpr int kCount = sizeof(offsets) / sizeof(offsets[0]);
    Access v[kCount];
#pragma unroll
    for (int u = 0; u < kCount; ++u) v[u] = load_streaming(reinterpret_cast<const Access*>(x + offsets[u]));
#pragma unroll
    for (int u = 0; u < kCount; ++u)
      store_streaming(reinterpret_cast<Access*>(y + offsets[u]), normalised(v[u], steps));
  });
}

// ---- Backward ----

// dx in evaluation, where the statistics are constants: dy times this, whatever x is.
template <class T>
__device__ __forceinline__ compute_t<T> scale_of(const Normalisation<compute_t<T>>& n, int64_t c,
                                                 const ChannelValues& weight) {
  return n.invstd * read_value_or<T>(weight, c, compute_t<T>(1));
}
template <class T, int V, class Scale>
__device__ __forceinline__ Vector<T, V> scaled(const Vector<T, V>& dy, Scale&& scale) {
  Values<T, V> gradients = to_compute(dy);
#pragma unroll
  for (int e = 0; e < V; ++e) gradients.value[e] *= scale(e);
  return from_compute(gradients);
}

// coefficients: [2, channels], mean of dy, and the slope with which dx depends on x - mean. dx, if not null: written
// here, in evaluation.
template <class T, int V, bool kRows>
__global__ void __launch_bounds__(256, V > 4 ? 2 : 3)
    batch_norm_grad_sums_kernel(const T* dy, const T* x, T* dx, Division d, ChannelValues weight,
                                ChannelStatistics statistics, ChannelValues dweight, ChannelValues dbias,
                                compute_t<T>* coefficients, Workspace workspace) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  Walk<V, kRows> walk(d);
  constexpr int K = Walk<V, kRows>::kChannels;
  Normalisation<A> n[K] = {};
  if (walk.channel(0) < d.channels)
#pragma unroll
    for (int k = 0; k < K; ++k) {
      n[k] = read_statistics<T>(statistics, d.channels, walk.channel(k));
      // The loop needs no deviation, but this, in the same register.
      if (dx != nullptr) n[k].invstd = scale_of<T>(n[k], walk.channel(k), weight);
    }

  GradSums<A> sums[V] = {};
  walk.for_each([&](const auto& offsets) {
    constexpr int kCount = sizeof(offsets) / sizeof(offsets[0]);
    Access v[kCount], g[kCount];
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      v[u] = load(reinterpret_cast<const Access*>(x + offsets[u]));
      g[u] = load(reinterpret_cast<const Access*>(dy + offsets[u]));
    }
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      add_gradients(sums, g[u], v[u], n);
      if (dx != nullptr)
        store_streaming(reinterpret_cast<Access*>(dx + offsets[u]),
                        scaled(g[u], [&](int e) { return n[e % K].invstd; }));
    }
  });

  GradSums<A> r[K] = {};
#pragma unroll
  for (int e = 0; e < V; ++e) r[kRows ? e : 0] = merge(r[kRows ? e : 0], sums[e]);
  if (!reduce_grid<A, V, kRows>(r, walk, d, workspace)) return;

  const A count = A(kRows ? d.length : d.length * V);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t c = walk.channel(k);
    store(coefficients + c, r[k].dy / count);
    const A invstd = read_statistics<T>(statistics, d.channels, c).invstd;
    store(coefficients + d.channels + c, slope_of(r[k], count, invstd));
    write_gradients<T>(r[k], invstd, c, dweight, dbias);
  }
}

template <class T, int V, bool kRows>
__global__ void __launch_bounds__(256, V > 4 ? 3 : 0)
    batch_norm_grad_input_kernel(const T* dy, const T* x, T* dx, Division d, ChannelValues weight,
                                 ChannelStatistics statistics, const compute_t<T>* coefficients) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  // In evaluation x is not read.
  const bool training = statistics.stats != nullptr;
  Walk<V, kRows> walk(d);
  constexpr int K = Walk<V, kRows>::kChannels;
  if (walk.left() == 0) return;
  BackwardStep<A> steps[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t c = walk.channel(k);
    const Normalisation<A> n = read_statistics<T>(statistics, d.channels, c);
    steps[k] = {n.centre, n.delta, scale_of<T>(n, c, weight), training ? load(coefficients + c) : A(0),
                training ? load(coefficients + d.channels + c) : A(0)};
  }
  const auto write = [&](const auto& offsets) {
    constexpr int kCount = sizeof(offsets) / sizeof(offsets[0]);
    Access v[kCount], g[kCount];
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      if (training) v[u] = load_streaming(reinterpret_cast<const Access*>(x + offsets[u]));
      g[u] = load_streaming(reinterpret_cast<const Access*>(dy + offsets[u]));
    }
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      const Access gradient =
          training ? input_gradient(g[u], v[u], steps) : scaled(g[u], [&](int e) { return steps[e % K].scale; });
      store_streaming(reinterpret_cast<Access*>(dx + offsets[u]), gradient);
    }
  };
  // The steps of eight channels leave few registers: half the vectors in flight, and half as many warps more.
  walk.template for_each<(K > 4 ? kInFlight / 2 : kInFlight)>(write);
}

}  // namespace fastreg
