// Batch norm that streams: any shape, any architecture. Two passes over memory, one launch each.
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
// Bytes per element, s = sizeof(T): training forward 3 s (two reads, one write), evaluation 2 s, backward 5 s (dy and x
// read twice, dx written).
#pragma once

#include "batch_norm.h"
#include "channel_reduction.cuh"
#include "channel_walk.cuh"
#include "device.h"
#include "memory.h"
#include "moments.h"

namespace fastreg {

// ---- Values per channel ----

template <class T>
__device__ __forceinline__ compute_t<T> read_value(const ChannelValues& values, int64_t channel) {
  if (values.is_float) return compute_t<T>(load(static_cast<const float*>(values.data) + channel));
  return to_compute(load(static_cast<const T*>(values.data) + channel));
}
template <class T>
__device__ __forceinline__ void write_value(const ChannelValues& values, int64_t channel, compute_t<T> value) {
  if (values.is_float) {
    store(static_cast<float*>(values.data) + channel, float(value));
  } else {
    store(static_cast<T*>(values.data) + channel, from_compute<T>(value));
  }
}
template <class T>
__device__ __forceinline__ compute_t<T> read_value_or(const ChannelValues& values, int64_t channel,
                                                      compute_t<T> otherwise) {
  return values.data != nullptr ? read_value<T>(values, channel) : otherwise;
}

template <class A>
struct Normalisation {
  A centre, delta, invstd;
};
template <class T>
__device__ __forceinline__ Normalisation<compute_t<T>> read_statistics(const ChannelStatistics& s, int64_t channels,
                                                                       int64_t channel) {
  using A = compute_t<T>;
  if (s.stats != nullptr) {
    const A* stats = static_cast<const A*>(s.stats) + channel;
    return {load(stats), load(stats + channels), load(stats + 2 * channels)};
  }
  return {read_value<T>(s.running_mean, channel), A(0),
          inverse_deviation(read_value<T>(s.running_var, channel), A(s.eps))};
}

// ---- Forward ----

template <class T, int V, bool kRows>
__global__ void __launch_bounds__(256, 2)
    batch_norm_moments_kernel(const T* x, Division d, ChannelStatistics statistics, RunningUpdate running,
                              Workspace workspace) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  Walk<V, kRows> walk(d);
  constexpr int K = Walk<V, kRows>::kChannels;

  A shift[V] = {}, sum[V] = {}, squares[V] = {};
  const int64_t count = walk.left();
  if (count > 0) {
    const Values<T, V> first = to_compute(load(reinterpret_cast<const Access*>(x + walk.offset())));
#pragma unroll
    for (int e = 0; e < V; ++e) shift[e] = first.value[e];
    walk.next();
  }
  walk.for_each([&](const auto& offsets) {
    constexpr int kCount = sizeof(offsets) / sizeof(offsets[0]);
    Access v[kCount];
#pragma unroll
    for (int u = 0; u < kCount; ++u) v[u] = load(reinterpret_cast<const Access*>(x + offsets[u]));
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      const Values<T, V> values = to_compute(v[u]);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const A difference = values.value[e] - shift[e];
        sum[e] += difference;
        squares[e] += difference * difference;
      }
    }
  });

  A centre[K] = {};
  Moments<A> r[K] = {};
  const bool inside = walk.channel(0) < d.channels;
  if (inside) {
    // A channel's first element: neighbours in the first row, or the first of the channel's first plane.
    using Centres = Vector<T, K>;
    const T* first = x + walk.channel(0) * (kRows ? 1 : d.plane_vectors * V);
    const Values<T, K> values = to_compute(load(reinterpret_cast<const Centres*>(first)));
#pragma unroll
    for (int k = 0; k < K; ++k) centre[k] = values.value[k];
  }
#pragma unroll
  for (int e = 0; e < V; ++e) {
    const int k = kRows ? e : 0;
    Moments<A> m = {};
    if (count > 0) {
      m = moments_from_sums(A(count), sum[e], squares[e]);
      m.mean += shift[e] - centre[k];
    }
    r[k] = merge(r[k], m);
  }

  if (!reduce_grid<A, V, kRows>(r, walk, d, workspace)) return;
  const A factor = running.cumulative ? A(1) / A(load(running.num_batches_tracked) + 1) : A(running.factor);
  A* stats = static_cast<A*>(statistics.stats);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t c = walk.channel(k);
    store(stats + c, centre[k]);
    store(stats + d.channels + c, r[k].mean);
    store(stats + 2 * d.channels + c, inverse_deviation(r[k].m2 / r[k].count, A(statistics.eps)));
    if (running.mean.data != nullptr)
      write_value<T>(running.mean, c, updated_running(read_value<T>(running.mean, c), centre[k] + r[k].mean, factor));
    if (running.var.data != nullptr)
      write_value<T>(running.var, c,
                     updated_running(read_value<T>(running.var, c), r[k].m2 / (r[k].count - A(1)), factor));
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
  A centre[K], delta[K], scale[K], shift[K];
  if (walk.left() == 0) return;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t c = walk.channel(k);
    const Normalisation<A> n = read_statistics<T>(statistics, d.channels, c);
    centre[k] = n.centre;
    delta[k] = n.delta;
    scale[k] = n.invstd * read_value_or<T>(weight, c, A(1));
    shift[k] = read_value_or<T>(bias, c, A(0));
  }
  walk.for_each([&](const auto& offsets) {
    constexpr int kCount = sizeof(offsets) / sizeof(offsets[0]);
    Access v[kCount];
#pragma unroll
    for (int u = 0; u < kCount; ++u) v[u] = load_streaming(reinterpret_cast<const Access*>(x + offsets[u]));
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      Values<T, V> values = to_compute(v[u]);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const int k = kRows ? e : 0;
        values.value[e] = ((values.value[e] - centre[k]) - delta[k]) * scale[k] + shift[k];
      }
      store_streaming(reinterpret_cast<Access*>(y + offsets[u]), from_compute(values));
    }
  });
}

// ---- Backward ----

// coefficients: [2, channels], mean of dy, and the slope with which dx depends on x - mean.
template <class T, int V, bool kRows>
__global__ void __launch_bounds__(256, 2)
    batch_norm_grad_sums_kernel(const T* dy, const T* x, Division d, ChannelStatistics statistics,
                                ChannelValues dweight, ChannelValues dbias, compute_t<T>* coefficients,
                                Workspace workspace) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  Walk<V, kRows> walk(d);
  constexpr int K = Walk<V, kRows>::kChannels;
  Normalisation<A> n[K] = {};
  if (walk.channel(0) < d.channels)
#pragma unroll
    for (int k = 0; k < K; ++k) n[k] = read_statistics<T>(statistics, d.channels, walk.channel(k));

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
      const Values<T, V> values = to_compute(v[u]), gradients = to_compute(g[u]);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const Normalisation<A>& of = n[kRows ? e : 0];
        sums[e].dy += gradients.value[e];
        sums[e].dy_x += gradients.value[e] * ((values.value[e] - of.centre) - of.delta);
      }
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
    store(coefficients + d.channels + c, r[k].dy_x / count * n[k].invstd * n[k].invstd);
    if (dweight.data != nullptr) write_value<T>(dweight, c, r[k].dy_x * n[k].invstd);
    if (dbias.data != nullptr) write_value<T>(dbias, c, r[k].dy);
  }
}

template <class T, int V, bool kRows>
__global__ void __launch_bounds__(256)
    batch_norm_grad_input_kernel(const T* dy, const T* x, T* dx, Division d, ChannelValues weight,
                                 ChannelStatistics statistics, const compute_t<T>* coefficients) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  // In evaluation the statistics are constants: dx = dy * scale, whatever x is, and x is not read.
  const bool training = statistics.stats != nullptr;
  Walk<V, kRows> walk(d);
  constexpr int K = Walk<V, kRows>::kChannels;
  A centre[K], delta[K], scale[K], mean[K], slope[K];
  if (walk.left() == 0) return;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t c = walk.channel(k);
    const Normalisation<A> n = read_statistics<T>(statistics, d.channels, c);
    centre[k] = n.centre;
    delta[k] = n.delta;
    scale[k] = n.invstd * read_value_or<T>(weight, c, A(1));
    mean[k] = training ? load(coefficients + c) : A(0);
    slope[k] = training ? load(coefficients + d.channels + c) : A(0);
  }
  walk.for_each([&](const auto& offsets) {
    constexpr int kCount = sizeof(offsets) / sizeof(offsets[0]);
    Access v[kCount], g[kCount];
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      if (training) v[u] = load_streaming(reinterpret_cast<const Access*>(x + offsets[u]));
      g[u] = load_streaming(reinterpret_cast<const Access*>(dy + offsets[u]));
    }
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      Values<T, V> gradients = to_compute(g[u]);
      if (training) {
        const Values<T, V> values = to_compute(v[u]);
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const int k = kRows ? e : 0;
          gradients.value[e] = (gradients.value[e] - mean[k]) - ((values.value[e] - centre[k]) - delta[k]) * slope[k];
        }
      }
#pragma unroll
      for (int e = 0; e < V; ++e) gradients.value[e] *= scale[kRows ? e : 0];
      store_streaming(reinterpret_cast<Access*>(dx + offsets[u]), from_compute(gradients));
    }
  });
}

}  // namespace fastreg
