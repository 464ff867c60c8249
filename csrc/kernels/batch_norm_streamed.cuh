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
#include "device.h"
#include "grid_sync.h"
#include "memory.h"
#include "moments.h"

namespace fastreg {

// How the work is divided among the blocks of a grid [groups, splits].
struct Division {
  int64_t channels;
  int64_t plane_vectors;  // planes: vectors in one channel of one plane
  int64_t length;         // what the splits divide: vectors of a channel (planes), rows (rows)
  int64_t split_length;   // how much of it one split takes
  int columns;            // threads side by side: vectors of neighbouring channels (rows), 1 (planes)
};

// ---- A thread's way through its share of the tensor ----

constexpr int kInFlight = 4;  // vectors that a thread loads before it uses any

template <int V, bool kRows>
class Walk {
 public:
  // Channels that a thread has accumulators' results for.
  static constexpr int kChannels = kRows ? V : 1;

  __device__ explicit Walk(const Division& d) {
    const int64_t begin = int64_t(blockIdx.y) * d.split_length;
    const int64_t end = begin + d.split_length < d.length ? begin + d.split_length : d.length;
    const int64_t step = int(blockDim.x) / d.columns;
    const int64_t at = begin + int(threadIdx.x) / d.columns;
    left_ = at < end ? (end - at + step - 1) / step : 0;
    if constexpr (kRows) {
      channel_ = (int64_t(blockIdx.x) * d.columns + int(threadIdx.x) % d.columns) * V;
      if (channel_ >= d.channels) left_ = 0;
      offset_ = at * d.channels + channel_;
      stride_ = step * d.channels;
    } else {
      // Divided by the plane's length once; from then on the position in the plane is carried along.
      const int64_t size = d.plane_vectors * V, pitch = d.channels * size;
      channel_ = blockIdx.x;
      plane_vectors_ = d.plane_vectors;
      within_ = at % plane_vectors_;
      within_step_ = step % plane_vectors_;
      offset_ = at / plane_vectors_ * pitch + channel_ * size + within_ * V;
      stride_ = step / plane_vectors_ * pitch + within_step_ * V;
      carry_ = pitch - size;
    }
  }

  __device__ __forceinline__ int64_t channel(int k) const { return channel_ + k; }
  __device__ __forceinline__ int64_t left() const { return left_; }
  __device__ __forceinline__ int64_t offset() const { return offset_; }  // of the vector, in elements

  __device__ __forceinline__ void next() {
    --left_;
    offset_ += stride_;
    if constexpr (!kRows) {
      within_ += within_step_;
      if (within_ >= plane_vectors_) {
        within_ -= plane_vectors_;
        offset_ += carry_;
      }
    }
  }

  // f(offsets) for all vectors that are left, kInFlight at a time, then one at a time.
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) {
    int64_t several[kInFlight], one[1];
    while (left_ >= kInFlight) {
#pragma unroll
      for (int u = 0; u < kInFlight; ++u, next()) several[u] = offset_;
      f(several);
    }
    for (; left_ > 0; next()) {
      one[0] = offset_;
      f(one);
    }
  }

 private:
  int64_t channel_, offset_, stride_, left_;
  int64_t plane_vectors_ = 0, within_ = 0, within_step_ = 0, carry_ = 0;  // planes only
};

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

// ---- Reduction: threads that share a column, then blocks that share a channel ----

template <class A>
struct GradSums {
  A dy, dy_x;  // of dy, and of dy * (x - mean)
};
template <class A>
FASTREG_HD GradSums<A> merge(const GradSums<A>& a, const GradSums<A>& b) {
  return {a.dy + b.dy, a.dy_x + b.dy_x};
}

// r[k] of the first thread of each column becomes the merger of its column's, in a fixed order. All threads call it.
// Between two calls with the same shared memory there must be a barrier.
template <int K, class R>
__device__ __forceinline__ void reduce_columns(R (&r)[K], R* shared, int columns) {
  const int row = int(threadIdx.x) / columns;
  R* mine = shared + int(threadIdx.x) * K;
#pragma unroll
  for (int k = 0; k < K; ++k) mine[k] = r[k];
  for (int half = int(blockDim.x) / columns / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half)
#pragma unroll
      for (int k = 0; k < K; ++k) mine[k] = merge(mine[k], mine[half * columns * K + k]);
  }
#pragma unroll
  for (int k = 0; k < K; ++k) r[k] = mine[k];
}

// A partial result in memory: what a split knows of a channel, less its count, which follows from the division.
template <class A>
__device__ __forceinline__ Vector<A, 2> pack(const Moments<A>& m) {
  return {{m.mean, m.m2}};
}
template <class A>
__device__ __forceinline__ Vector<A, 2> pack(const GradSums<A>& s) {
  return {{s.dy, s.dy_x}};
}
template <class A>
__device__ __forceinline__ void unpack(const Vector<A, 2>& v, A count, Moments<A>& m) {
  m = {count, v.element[0], v.element[1]};
}
template <class A>
__device__ __forceinline__ void unpack(const Vector<A, 2>& v, A, GradSums<A>& s) {
  s = {v.element[0], v.element[1]};
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
  auto* partials = static_cast<Vector<A, 2>*>(workspace.partials);

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
        const int64_t rest = d.length - split * d.split_length;
        const int64_t vectors = rest < d.split_length ? rest : d.split_length;
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
