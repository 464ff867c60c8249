// Activation and dropout: y = dropout(act(x + bias)) + residual, and backward dx = dropout(dy) act'(x + bias).
//
// Algorithm. Elementwise, with one rounding. Backward computes x + bias and the mask again: nothing is saved.
//
// Thread mapping. A thread moves vectors of V elements, the threads of the grid side by side; kActInFlight of them are
// loaded before any is used. What is computed of a vector is long, for all activations, and is there once. The last
// vector may be cut short: it is moved element by element. A block of the stream has 8 elements: each vector of 8 or
// fewer makes a Philox call. V = 1 serves pointers that are not aligned.
//
// Bytes per element, s = sizeof(T): 2 s, with a residual 3 s; backward 3 s. The bias comes from cache.
#pragma once

#include <algorithm>

#include "kernels/dropout/act_dropout.h"
#include "kernels/dropout/common.cuh"
#include "kernels/dropout/stream_walk.h"

namespace fastreg {

constexpr int kActInFlight = 4;

// All that the kernel is told. other: the residual, or dy where it goes backward; null: none.
template <class T>
struct ActDropoutWork {
  using A = compute_t<T>;
  const T *x, *other, *bias;
  T* out;
  int64_t n;
  Divider channels;
  bool whole_bias;  // the elements of a vector of bias stand together, aligned
  bool backward;
  ActivationKind act;
  A parameter;
  bool drops, by_feature;
  A keep_scale;
  DropThreshold threshold;
  StateSource state;
  FeatureWalk features;
  StreamMap map;
};

// The elements from `offset` on that there are; zeros for the others.
template <class T, int V>
__device__ __forceinline__ Vector<T, V> load_part(const T* from, int64_t offset, int64_t n) {
  if (offset + V <= n) return load_streaming(reinterpret_cast<const Vector<T, V>*>(from + offset));
  Vector<T, V> v = {};
#pragma unroll
  for (int e = 0; e < V; ++e)
    if (offset + e < n) v.element[e] = load(reinterpret_cast<const Vector<T, 1>*>(from + offset + e)).element[0];
  return v;
}
template <class T, int V>
__device__ __forceinline__ void store_part(T* to, int64_t offset, int64_t n, const Vector<T, V>& v) {
  if (offset + V <= n) {
    store_streaming(reinterpret_cast<Vector<T, V>*>(to + offset), v);
    return;
  }
#pragma unroll
  for (int e = 0; e < V; ++e)
    if (offset + e < n) store(reinterpret_cast<Vector<T, 1>*>(to + offset + e), Vector<T, 1>{{v.element[e]}});
}

template <class T, int V>
__device__ __forceinline__ void add_bias(Values<T, V>& z, int64_t offset, const ActDropoutWork<T>& w) {
  uint64_t channel = uint64_t(offset) - w.channels(uint64_t(offset)) * w.channels.divisor;
  if (w.whole_bias) {
    const Values<T, V> bias = to_compute(load(reinterpret_cast<const Vector<T, V>*>(w.bias + channel)));
#pragma unroll
    for (int e = 0; e < V; ++e) z.value[e] += bias.value[e];
    return;
  }
#pragma unroll
  for (int e = 0; e < V; ++e) {
    z.value[e] += to_compute(load(reinterpret_cast<const Vector<T, 1>*>(w.bias + channel)).element[0]);
    if (++channel == w.channels.divisor) channel = 0;
  }
}

template <class T, int V>
__global__ void __launch_bounds__(256, 2) act_dropout_kernel(ActDropoutWork<T> w) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  const RandomState state = w.drops ? read_state(w.state) : RandomState{};
  KeepBits feature_bits(state, w.threshold);

  const auto keep_of = [&](int64_t offset) {
    if (!w.drops) return ~0u;
    if (!w.by_feature) return keep_bits_of_vector<V>(offset, state, w.threshold);
    const int64_t rest = w.n - offset;
    return w.features.keep_bits_of(uint64_t(offset), rest < V ? int(rest) : V, w.map, feature_bits);
  };
  const auto result = [&](const Access& x, const Access& other, int64_t offset) {
    const uint32_t keep = keep_of(offset);
    const auto kept = [&](int e) { return ((keep >> e) & 1u) != 0; };
    Values<T, V> z = to_compute(x), out = to_compute(other);
    if (w.bias != nullptr) add_bias(z, offset, w);
    if (w.backward) {
#pragma unroll
      for (int e = 0; e < V; ++e) out.value[e] = kept(e) ? out.value[e] * w.keep_scale : A(0);
      with_unweighted_kind(w.act, [&](auto kind) {
#pragma unroll
        for (int e = 0; e < V; ++e)
          out.value[e] = gradient(decltype(kind)::value, out.value[e], z.value[e], w.parameter);
      });
      return from_compute(out);
    }
    with_unweighted_kind(w.act, [&](auto kind) {
#pragma unroll
      for (int e = 0; e < V; ++e) z.value[e] = activate(decltype(kind)::value, z.value[e], w.parameter);
    });
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A before = w.other != nullptr ? out.value[e] : A(-0.0);  // adding -0 leaves every number as it is
      const A after = multiply_add(z.value[e], w.keep_scale, before);
      out.value[e] = kept(e) ? after : w.other != nullptr ? before : A(0);
    }
    return from_compute(out);
  };

  const int64_t stride = int64_t(gridDim.x) * int(blockDim.x) * V;
  int64_t ahead = (int64_t(blockIdx.x) * int(blockDim.x) + int(threadIdx.x)) * V, at = ahead;
  while (at < w.n) {
    Access x[kActInFlight], other[kActInFlight];
#pragma unroll
    for (int u = 0; u < kActInFlight; ++u, ahead += stride) {
      if (ahead >= w.n) break;
      x[u] = load_part<T, V>(w.x, ahead, w.n);
      other[u] = w.other != nullptr ? load_part<T, V>(w.other, ahead, w.n) : Access{};
    }
#pragma unroll 1
    for (int u = 0; u < kActInFlight && at < w.n; ++u, at += stride) {
      store_part(w.out, at, w.n, result(x[0], other[0], at));
#pragma unroll
      for (int later = 1; later < kActInFlight; ++later) {
        x[later - 1] = x[later];
        other[later - 1] = other[later];
      }
    }
  }
}

}  // namespace fastreg
