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
      squares_[e] = multiply_add(difference, difference, squares_[e]);
    }
  }

  // The moments of each channel. Bit k of the result: channel k has to be looked at again.
  template <int K>
  __device__ __forceinline__ unsigned moments(Moments<A> (&r)[K]) const {
#pragma unroll
    for (int k = 0; k < K; ++k) r[k] = {};
    if (count_ == 0) return 0;
    unsigned doubtful = 0;
    const A count = A(count_);
    Moments<A> all[V];
#pragma unroll
    for (int e = 0; e < V; ++e) {
      all[e] = moments_from_sums(count, shift_.value[e], sum_[e], squares_[e], A(1));
      doubtful |= unsigned(is_doubtful(count, sum_[e], squares_[e])) << e % K;
    }
#pragma unroll
    for (int half = V / 2; half >= K; half /= 2)
#pragma unroll
      for (int e = 0; e < half; ++e) all[e] = merge(all[e], all[e + half]);
#pragma unroll
    for (int k = 0; k < K; ++k) r[k] = all[k];
    return doubtful;
  }

 private:
  int64_t count_ = 0;
  Values<T, V> shift_;
  A sum_[V] = {}, squares_[V] = {};
};

// A number that is 0, which the compiler does not know: what is computed with it is computed where it is needed, and
// not kept in registers from where the same was computed before. doubtful: of fewer channels than it has bits.
__device__ __forceinline__ int unknown_zero(unsigned doubtful) { return int(doubtful >> 31); }

// r[k] anew, for each bit k of doubtful, from one more look at the values, one channel after the other: few need it.
// for_each(use): use(values) for all vectors of the thread; is_of(k, e): whether element e is of channel k.
template <class A, int K, class ForEach, class IsOf>
__device__ __forceinline__ void look_again(Moments<A> (&r)[K], unsigned doubtful, ForEach&& for_each, IsOf&& is_of) {
#pragma unroll 1
  for (int channel = 0; doubtful >> channel != 0; ++channel) {
    if ((doubtful >> channel & 1u) == 0) continue;
    Moments<A> first = r[0];
#pragma unroll
    for (int k = 1; k < K; ++k) first = k == channel ? r[k] : first;
    SecondLook<A> look(first);
    for_each([&](const auto& x) {
      constexpr int V = sizeof(x.value) / sizeof(x.value[0]);
#pragma unroll
      for (int e = 0; e < V; ++e)
        if (is_of(channel, e)) look.add(x.value[e]);
    });
    const Moments<A> second = look.moments();
#pragma unroll
    for (int k = 0; k < K; ++k) r[k] = k == channel ? second : r[k];
  }
}

// What running.factor means: read before any block may increment num_batches_tracked.
template <class A>
__device__ __forceinline__ A running_factor(const RunningUpdate& running) {
  return running.cumulative ? A(1) / A(load(running.num_batches_tracked) + 1) : A(running.factor);
}

// The channel's statistics from its moments; stored, and the running ones updated, by one thread.
template <class A>
__device__ __forceinline__ Normalisation<A> normalisation_of(const Moments<A>& m, double eps) {
  return {m.centre, m.delta, inverse_deviation(m, eps)};
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
    write_value<T>(running.var, c, updated_running(read_value<T>(running.var, c), unbiased_variance(m), factor));
}

// y of one channel: (x - centre) * scale + shift, where delta is part of the shift.
template <class A>
struct ForwardStep {
  A centre, scale, shift;
};
template <class T>
__device__ __forceinline__ ForwardStep<compute_t<T>> forward_step(const Normalisation<compute_t<T>>& n, int64_t c,
                                                                  const ChannelValues& weight,
                                                                  const ChannelValues& bias) {
  using A = compute_t<T>;
  const A scale = scale_of<T>(n, c, weight);
  return {n.centre, scale, multiply_add(-n.delta, scale, read_value_or<T>(bias, c, A(0)))};
}
template <class T, int V, int K>
__device__ __forceinline__ Vector<T, V> normalised(const Vector<T, V>& x, const ForwardStep<compute_t<T>> (&steps)[K]) {
  Values<T, V> values = to_compute(x);
#pragma unroll
  for (int e = 0; e < V; ++e) {
    const ForwardStep<compute_t<T>>& s = steps[e % K];
    values.value[e] = multiply_add(values.value[e] - s.centre, s.scale, s.shift);
  }
  return from_compute(values);
}

// ---- Backward ----

// Of dy, and of dy * (x - centre) / unit_of(invstd): about as large as dy whatever x is.
template <class A>
struct GradSums {
  A dy, dy_x;
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

// The power of two next to 1 / deviation, which x - centre is multiplied with: exactly, but for what vanishes.
FASTREG_HD float inverse_unit(float invstd) {
  const float power = bit_cast<float>(bit_cast<uint32_t>(invstd) & 0x7F800000u);
  return power < 0x1p-100f ? 0x1p-100f : power < 0x1p100f ? power : 0x1p100f;
}
FASTREG_HD double inverse_unit(double invstd) {
  const double power = bit_cast<double>(bit_cast<uint64_t>(invstd) & 0x7FF0000000000000u);
  return power < 0x1p-900 ? 0x1p-900 : power < 0x1p900 ? power : 0x1p900;
}

// Step: with the centre and the inverse_unit of a channel.
template <class T, int V, class Step, int K>
__device__ __forceinline__ void add_gradients(GradSums<compute_t<T>> (&sums)[V], const Vector<T, V>& dy,
                                              const Values<T, V>& values, const Step (&n)[K]) {
  const Values<T, V> gradients = to_compute(dy);
#pragma unroll
  for (int e = 0; e < V; ++e) {
    sums[e].dy += gradients.value[e];
    const compute_t<T> x = (values.value[e] - n[e % K].centre) * n[e % K].inverse_unit;
    sums[e].dy_x = multiply_add(gradients.value[e], x, sums[e].dy_x);
  }
}

// Of dy * x_hat, x_hat = (x - mean) / deviation.
template <class A>
__device__ __forceinline__ A sum_with_x_hat(const GradSums<A>& total, const Normalisation<A>& n) {
  const A unit = inverse_unit(n.invstd);
  return (total.dy_x - n.delta * unit * total.dy) * (n.invstd / unit);
}

template <class T>
__device__ __forceinline__ void write_gradients(const GradSums<compute_t<T>>& total,
                                                const Normalisation<compute_t<T>>& n, int64_t c,
                                                const ChannelValues& dweight, const ChannelValues& dbias) {
  if (dweight.data != nullptr) write_value<T>(dweight, c, sum_with_x_hat(total, n));
  if (dbias.data != nullptr) write_value<T>(dbias, c, total.dy);
}

// What dx depends on besides the channel's scale: the mean of dy, and the slope per x - mean. Both 0 in evaluation.
template <class A>
struct GradMeans {
  A dy, slope;
};
template <class A>
__device__ __forceinline__ GradMeans<A> means_of(const GradSums<A>& total, A count, const Normalisation<A>& n) {
  return {total.dy / count, sum_with_x_hat(total, n) / count * n.invstd};
}

// dx of one channel: (dy - mean - (x - centre) * slope) * scale, where delta is part of the mean.
template <class A>
struct BackwardStep {
  A centre, scale, mean, slope;
};
template <class T>
__device__ __forceinline__ BackwardStep<compute_t<T>> backward_step(const Normalisation<compute_t<T>>& n,
                                                                    const GradMeans<compute_t<T>>& means, int64_t c,
                                                                    const ChannelValues& weight) {
  return {n.centre, scale_of<T>(n, c, weight), multiply_add(-n.delta, means.slope, means.dy), means.slope};
}
template <class T, int V, class Step, int K>
__device__ __forceinline__ Values<T, V> input_gradient(const Vector<T, V>& dy, const Values<T, V>& values,
                                                       const Step (&steps)[K]) {
  Values<T, V> gradients = to_compute(dy);
#pragma unroll
  for (int e = 0; e < V; ++e) {
    const BackwardStep<compute_t<T>>& s = steps[e % K];
    gradients.value[e] = multiply_add(-(values.value[e] - s.centre), s.slope, gradients.value[e] - s.mean) * s.scale;
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
