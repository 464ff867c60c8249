// Feature dropout: y = keep ? fma(x, scale, shift) : fill, where the elements of a feature (a channel, a sample) share
// one draw; with a residual, y = keep ? fma(x, scale, residual) : residual.
//
// Algorithm. The draws of the elements that a lane moves are found first, then x is loaded where any of them is kept:
// what is dropped is not read. Where a tile lies in one feature, or where the channels of a channels-last tensor come
// round with each access, a lane finds the draws of its first access only; else it goes from access to access, and
// calls Philox where the next block of 8 draws begins.
//
// Thread mapping. A warp works on tiles of kFeatureAccesses coalesced accesses of V elements a lane, all loads in
// flight together. Tiles begin at a 16-byte boundary; where x, y and the residual are off it by the same number of
// elements, accesses that the tensor's ends cut go element by element. V = 1 serves pointers that are off it
// differently.
//
// Bytes per element: sizeof(T) written, sizeof(T) read if it is kept (or shares its 16 bytes with one that is), and
// sizeof(T) of the residual, if there is one.
// Instructions per 8 elements: tests/codegen/table.tsv.
#pragma once

#include "kernels/dropout/common.cuh"
#include "kernels/dropout/feature_dropout.h"
#include "kernels/dropout/stream_walk.h"

namespace fastreg {

template <int V>
constexpr int kFeatureAccesses = V > 1 ? 4 : 8;

// Times V bits: the same V bits for each access.
template <int V>
constexpr uint32_t kRepeated = ((uint64_t(1) << (V * kFeatureAccesses<V>)) - 1) / ((1u << V) - 1);

// residual + x scale where keep(e), else the residual.
template <class T, int V, class Keep>
__device__ __forceinline__ Vector<T, V> added(const Vector<T, V>& v, const Vector<T, V>& residual, compute_t<T> scale,
                                              Keep keep) {
  const Values<T, V> x = to_compute(v);
  Values<T, V> sum = to_compute(residual);
#pragma unroll
  for (int e = 0; e < V; ++e) {
    const compute_t<T> kept = multiply_add(x.value[e], scale, sum.value[e]);
    sum.value[e] = keep(e) ? kept : sum.value[e];
  }
  return from_compute(sum);
}

// x, residual and y: where `span` counts from. residual: null where there is none.
template <class T, int V>
__global__ void __launch_bounds__(256, 3)
    feature_dropout_kernel(const T* x, const T* residual, T* y, Span span, FeatureWalk features, StateSource source,
                           DropThreshold threshold, Transform<compute_t<T>> transform, StreamMap map) {
  constexpr int kAccesses = kFeatureAccesses<V>;
  constexpr int kTileElements = kWarp * V * kAccesses;
  using Access = Vector<T, V>;
  using Element = Vector<T, 1>;

  const bool adds = residual != nullptr;
  KeepBits keep_bits(read_state(source), threshold);

  // This lane's access k to a tile, relative to the tile's first element.
  const auto offset_of = [lane = int(threadIdx.x) % kWarp](int k) { return (k * kWarp + lane) * V; };

  const int64_t tiles = (span.end + kTileElements - 1) / kTileElements;
  const int64_t warps = warp_count();
  for (int64_t tile = warp_index(); tile < tiles; tile += warps) {
    const int64_t base = tile * kTileElements;
    const Part part = span.part(base, kTileElements);

    uint32_t bits = 0;  // of element e of access k at bit V k + e
    const bool repeats = features.repeats(base - span.begin, kTileElements);
#pragma unroll 1
    for (int k = 0; k < (repeats ? 1 : kAccesses); ++k) {
      const int64_t j = base + offset_of(k) - span.begin;
      const int before = j < 0 ? int(-j) : 0;  // elements before the first
      bits |= features.keep_bits_of(uint64_t(j + before), V - before, map, keep_bits) << (V * k + before);
    }
    if (repeats) bits *= kRepeated<V>;
    const auto keeps = [&](int k) { return (bits >> (V * k)) & KeepBits::first_bits(V); };

    if (part.holds(0, kTileElements)) {
      Access v[kAccesses], r[kAccesses];
#pragma unroll
      for (int k = 0; k < kAccesses; ++k) {
        v[k] = Access{};
        if (keeps(k) != 0) v[k] = load_streaming(reinterpret_cast<const Access*>(x + base + offset_of(k)));
      }
      if (adds) {
#pragma unroll
        for (int k = 0; k < kAccesses; ++k)
          r[k] = load_streaming(reinterpret_cast<const Access*>(residual + base + offset_of(k)));
      }
#pragma unroll
      for (int k = 0; k < kAccesses; ++k) {
        const auto keep = [&](int e) { return (keeps(k) >> e) & 1u; };
        store_streaming(reinterpret_cast<Access*>(y + base + offset_of(k)),
                        adds ? added(v[k], r[k], transform.scale, keep) : dropped(v[k], transform, keep));
      }
    } else {
      for (int i = 0; i < kAccesses * V; ++i) {
        const int offset = offset_of(i / V) + i % V;
        if (!part.holds(offset, 1)) continue;
        const auto keep = [&](int) { return (bits >> i) & 1u; };
        Element v = {};
        if (keep(0)) v = load(reinterpret_cast<const Element*>(x + base + offset));
        Element out;
        if (adds) {
          out = added(v, load(reinterpret_cast<const Element*>(residual + base + offset)), transform.scale, keep);
        } else {
          out = dropped(v, transform, keep);
        }
        store(reinterpret_cast<Element*>(y + base + offset), out);
      }
    }
  }
}

}  // namespace fastreg
