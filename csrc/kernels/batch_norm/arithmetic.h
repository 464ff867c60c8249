// The arithmetic of batch norm, one for all tiers: what a thread gathers of the elements that it reads, what follows
// from a channel's totals, and the elementwise step.
//
// Arrays of K per-channel values: K is V where the elements of a vector belong to V channels (rows), 1 where all belong
// to one (planes).
#pragma once

#include "kernels/batch_norm/batch_norm.h"
#include "kernels/batch_norm/moments.h"
#include "kernels/common/device.h"
#include "kernels/common/memory.h"
#include "kernels/common/vector.h"

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
// What a channel's deviations from the mean are multiplied with.
template <class T>
__device__ __forceinline__ compute_t<T> scale_of(const Normalisation<compute_t<T>>& n, int64_t c,
                                                 const ChannelValues& weight) {
  return n.invstd * read_value_or<T>(weight, c, compute_t<T>(1));
}
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

// Sums over the elements that a thread reads, each accumulator's relative to the first value that it meets, so that
// sums of squares lose nothing to a large mean.
template <class T, int V>
class MomentSums {
 public:
  using A = compute_t<T>;

  __device__ __forceinline__ bool empty() const { return count_ == 0; }
  __device__ __forceinline__ void start(const Values<T, V>& first) { shift_ = first; }
  __device__ __forceinline__ void add(const Values<T, V>& x) {
    ++count_;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A difference = x.value[e] - shift_.value[e];
      sum_[e] += difference;
      squares_[e] += difference * difference;
    }
  }

  // Per channel, means relative to its centre.
  template <int K>
  __device__ __forceinline__ void moments(const Values<T, K>& centre, Moments<A> (&r)[K]) const {
#pragma unroll
    for (int k = 0; k < K; ++k) r[k] = {};
    if (count_ == 0) return;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const int k = e % K;
      Moments<A> m = moments_from_sums(A(count_), sum_[e], squares_[e]);
      m.mean += shift_.value[e] - centre.value[k];
      r[k] = merge(r[k], m);
    }
  }

 private:
  int64_t count_ = 0;
  Values<T, V> shift_;
  A sum_[V] = {}, squares_[V] = {};
};

// What running.factor means: read before any block may increment num_batches_tracked.
template <class A>
__device__ __forceinline__ A running_factor(const RunningUpdate& running) {
  return running.cumulative ? A(1) / A(load(running.num_batches_tracked) + 1) : A(running.factor);
}

// The channel's statistics from its moments relative to its centre; stored, and the running ones updated, by one
// thread.
template <class A>
__device__ __forceinline__ Normalisation<A> normalisation_of(A centre, const Moments<A>& m, double eps) {
  return {centre, m.mean, inverse_deviation(m.m2 / m.count, A(eps))};
}
template <class T>
__device__ __forceinline__ void write_statistics(const Normalisation<compute_t<T>>& n, const Moments<compute_t<T>>& m,
                                                 int64_t channels, int64_t c, const ChannelStatistics& statistics,
                                                 const RunningUpdate& running, compute_t<T> factor) {
  using A = compute_t<T>;
  A* const stats = static_cast<A*>(statistics.stats) + c;
  store(stats, n.centre);
  store(stats + channels, n.delta);
  store(stats + 2 * channels, n.invstd);
  if (running.mean.data != nullptr)
    write_value<T>(running.mean, c, updated_running(read_value<T>(running.mean, c), n.centre + n.delta, factor));
  if (running.var.data != nullptr)
    write_value<T>(running.var, c, updated_running(read_value<T>(running.var, c), m.m2 / (m.count - A(1)), factor));
}

// y of one channel.
template <class A>
struct ForwardStep {
  A centre, delta, scale, shift;
};
template <class T>
__device__ __forceinline__ ForwardStep<compute_t<T>> forward_step(const Normalisation<compute_t<T>>& n, int64_t c,
                                                                  const ChannelValues& weight,
                                                                  const ChannelValues& bias) {
  using A = compute_t<T>;
  return {n.centre, n.delta, scale_of<T>(n, c, weight), read_value_or<T>(bias, c, A(0))};
}
template <class T, int V, int K>
__device__ __forceinline__ Vector<T, V> normalised(const Vector<T, V>& x, const ForwardStep<compute_t<T>> (&steps)[K]) {
  Values<T, V> values = to_compute(x);
#pragma unroll
  for (int e = 0; e < V; ++e) {
    const ForwardStep<compute_t<T>>& s = steps[e % K];
    values.value[e] = ((values.value[e] - s.centre) - s.delta) * s.scale + s.shift;
  }
  return from_compute(values);
}

// ---- Backward ----

template <class A>
struct GradSums {
  A dy, dy_x;  // of dy, and of dy * (x - mean)
};
template <class A>
FASTREG_HD GradSums<A> merge(const GradSums<A>& a, const GradSums<A>& b) {
  return {a.dy + b.dy, a.dy_x + b.dy_x};
}

// With what is summed for the gradient of an activation's slope.
template <class A>
struct SlopeSums : GradSums<A> {
  A slope;
};
template <class A>
FASTREG_HD SlopeSums<A> merge(const SlopeSums<A>& a, const SlopeSums<A>& b) {
  return {{a.dy + b.dy, a.dy_x + b.dy_x}, a.slope + b.slope};
}

// Step: Normalisation or ForwardStep.
template <class T, int V, class Step, int K>
__device__ __forceinline__ void add_gradients(GradSums<compute_t<T>> (&sums)[V], const Vector<T, V>& dy,
                                              const Values<T, V>& values, const Step (&n)[K]) {
  const Values<T, V> gradients = to_compute(dy);
#pragma unroll
  for (int e = 0; e < V; ++e) {
    sums[e].dy += gradients.value[e];
    sums[e].dy_x += gradients.value[e] * ((values.value[e] - n[e % K].centre) - n[e % K].delta);
  }
}

template <class T>
__device__ __forceinline__ void write_gradients(const GradSums<compute_t<T>>& total, compute_t<T> invstd, int64_t c,
                                                const ChannelValues& dweight, const ChannelValues& dbias) {
  if (dweight.data != nullptr) write_value<T>(dweight, c, total.dy_x * invstd);
  if (dbias.data != nullptr) write_value<T>(dbias, c, total.dy);
}

// dx of one channel. mean: of dy; slope: with which dx depends on x - mean. Both 0 in evaluation.
template <class A>
struct BackwardStep {
  A centre, delta, scale, mean, slope;
};
template <class A>
__device__ __forceinline__ A slope_of(const GradSums<A>& total, A count, A invstd) {
  return total.dy_x / count * invstd * invstd;
}
template <class T, int V, class Step, int K>
__device__ __forceinline__ Values<T, V> input_gradient(const Vector<T, V>& dy, const Values<T, V>& values,
                                                       const Step (&steps)[K]) {
  Values<T, V> gradients = to_compute(dy);
#pragma unroll
  for (int e = 0; e < V; ++e) {
    const BackwardStep<compute_t<T>>& s = steps[e % K];
    gradients.value[e] = ((gradients.value[e] - s.mean) - ((values.value[e] - s.centre) - s.delta) * s.slope) * s.scale;
  }
  return gradients;
}
// dx in evaluation, where the statistics are constants: dy times scale(e), whatever x is.
template <class T, int V, class Scale>
__device__ __forceinline__ Values<T, V> scaled(const Vector<T, V>& dy, Scale&& scale) {
  Values<T, V> gradients = to_compute(dy);
#pragma unroll
  for (int e = 0; e < V; ++e) gradients.value[e] *= scale(e);
  return gradients;
}

}  // namespace fastreg
