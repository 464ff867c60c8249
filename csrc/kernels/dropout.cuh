// Dropout: y = keep ? fma(x, scale, shift) : fill, the mask recomputed from the random state wherever it is needed.
//
// Algorithm. The stream of dropout_stream.h: one Philox call decides 8 elements, and every draw of it is used.
//
// Thread mapping. A warp works on tiles of 256 elements. Each lane makes the Philox call of one block of 8 elements of
// the tile; then the warp moves the tile in 8 / V coalesced accesses of V elements a lane. Lanes need keep bits that
// other lanes computed, at most one shuffle an access:
//   V = 8 (16-bit types)  lane l computes and moves block l: nothing to exchange.
//   V = 4 (fp32)          lane l moves halves of blocks l/2 and 16 + l/2; lane l computes block l/2 + 16 (l & 1), so
//                         that one exchange between neighbours serves both accesses.
//   V = 2, 1              lane l computes block l, and one shuffle fetches the bits for each access. V = 1 serves
//                         pointers that are not 16-byte aligned, and index maps that split blocks.
// Groups of kTilesInFlight whole tiles are loaded before any is used. What is left, less than a group, goes tile by
// tile and element by element, and so does all of a tensor whose map splits blocks; all lanes take part in each
// exchange.
//
// Bytes per element: sizeof(T) read, sizeof(T) written, no mask.
// Instructions per 8 elements, counted in the machine code of each architecture: tests/codegen/table.tsv.
#pragma once

#include "device.h"
#include "dropout.h"
#include "memory.h"

namespace fastreg {

constexpr int kWarp = 32;
constexpr int kTile = kWarp * kBlockElements;

template <int V>
constexpr int kTilesInFlight = V >= 8   ? 4
                               : V >= 4 ? 2
                                        : 1;

// What an index map does to the aligned blocks of 8 local elements.
enum class Mapping {
  shift,    // block b is block b + first / 8 of the stream
  blocks,   // some other block of the stream
  scatter,  // parts of several blocks
};

__device__ __forceinline__ RandomState read_state(const StateSource& source) {
  return RandomState{
      source.seed_pointer ? uint64_t(load(source.seed_pointer)) : source.seed,
      source.offset + (source.offset_pointer ? uint64_t(load(source.offset_pointer)) : 0),
  };
}

// Keep bits of the 8 elements from local element j on, of several blocks of the stream.
__device__ inline uint32_t scattered_keep_bits(int64_t j, const IndexMap& map, RandomState state,
                                               DropThreshold threshold) {
  uint32_t bits = 0;
  uint64_t block = ~uint64_t(0);
  uint32_t block_bits = 0;
  for (int s = 0; s < kBlockElements; ++s) {
    const uint64_t i = map(j + s);
    if (i / kBlockElements != block) {
      block = i / kBlockElements;
      block_bits = keep_bits(block, state, threshold);
    }
    bits |= ((block_bits >> (i % kBlockElements)) & 1u) << s;
  }
  return bits;
}

// Which block of the tile a lane computes.
template <int V>
__device__ __forceinline__ int block_of_lane(int lane) {
  return V == 4 ? lane / 2 + 16 * (lane & 1) : lane;
}

// From the bits that each lane computed to those of its own accesses: bit V k + e of the result belongs to element e
// of access k. All lanes of the warp call it.
template <int V>
__device__ __forceinline__ uint32_t bits_of_accesses(uint32_t bits, int lane) {
  constexpr unsigned kAll = 0xFFFFFFFFu;
  if constexpr (V == 8) return bits;
  if constexpr (V == 4) {
    // The even lane of a pair holds the block of access 0, the odd lane that of access 1; each needs the nibble of
    // its own parity from both.
    const int odd = lane & 1;
    const uint32_t mine = (bits >> (4 * odd)) & 0xFu;
    const uint32_t theirs = __shfl_xor_sync(kAll, (bits >> (4 * (1 - odd))) & 0xFu, 1);
    return odd ? theirs | mine << 4 : mine | theirs << 4;
  }
  uint32_t result = 0;
#pragma unroll
  for (int k = 0; k < kBlockElements / V; ++k) {
    const int element = (k * kWarp + lane) * V;
    const uint32_t block_bits = __shfl_sync(kAll, bits, element / kBlockElements);
    result |= ((block_bits >> (element % kBlockElements)) & ((1u << V) - 1)) << (V * k);
  }
  return result;
}

// A transform in the compute type.
template <class C>
struct Transform {
  C scale, shift, fill;
};
template <class C>
Transform<C> rounded(const DropTransform& t) {
  return {C(t.scale), C(t.shift), C(t.fill)};
}

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

// v with the elements transformed that keep(e) says to keep, and the filling for the others.
template <class T, int V, class Keep>
__device__ __forceinline__ Vector<T, V> dropped(const Vector<T, V>& v, const Transform<compute_t<T>>& transform,
                                                Keep keep) {
  Values<T, V> x = to_compute(v);
#pragma unroll
  for (int e = 0; e < V; ++e) {
    const compute_t<T> kept = multiply_add(x.value[e], transform.scale, transform.shift);
    x.value[e] = keep(e) ? kept : transform.fill;
  }
  return from_compute(x);
}

template <class T, int V, Mapping kMapping>
__global__ void __launch_bounds__(256)
    dropout_kernel(const T* x, T* y, int64_t n, StateSource source, DropThreshold threshold,
                   Transform<compute_t<T>> transform, IndexMap map) {
  constexpr int kAccesses = kBlockElements / V;
  using Access = Vector<T, V>;

  const RandomState state = read_state(source);
  if (source.used != nullptr && blockIdx.x == 0 && threadIdx.x == 0) {
    store(source.used, int64_t(state.seed));
    store(source.used + 1, int64_t(state.offset));
  }

  const int lane = int(threadIdx.x) % kWarp;
  const int64_t warps = int64_t(gridDim.x) * (blockDim.x / kWarp);
  const int64_t first_warp = int64_t(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  const int block_in_tile = block_of_lane<V>(lane);

  // The block of the stream that this lane computes for a tile.
  const auto block_of = [&](int64_t tile) -> uint64_t {
    const int64_t block = tile * kWarp + block_in_tile;
    if constexpr (kMapping == Mapping::shift) return uint64_t(map.first / kBlockElements + block);
    return map(block * kBlockElements) / kBlockElements;
  };
  // Keep bits for this lane's accesses to a tile. All lanes of the warp call it.
  const auto bits_of = [&](int64_t tile) -> uint32_t {
    uint32_t bits;
    if constexpr (kMapping == Mapping::scatter) {
      bits = scattered_keep_bits((tile * kWarp + block_in_tile) * kBlockElements, map, state, threshold);
    } else {
      bits = keep_bits(block_of(tile), state, threshold);
    }
    return bits_of_accesses<V>(bits, lane);
  };
  // This lane's access k to a tile, relative to the tile's first element.
  const auto offset_of = [&](int k) { return (k * kWarp + lane) * V; };

  constexpr int kGroup = kTilesInFlight<V>;
  const int64_t groups = kMapping == Mapping::scatter ? 0 : n / (kTile * kGroup);
  for (int64_t group = first_warp; group < groups; group += warps) {
    const T* from = x + group * (kTile * kGroup);
    T* to = y + group * (kTile * kGroup);
    Access v[kGroup][kAccesses];
#pragma unroll
    for (int u = 0; u < kGroup; ++u)
#pragma unroll
      for (int k = 0; k < kAccesses; ++k)
        v[u][k] = load_streaming(reinterpret_cast<const Access*>(from + u * kTile + offset_of(k)));
#pragma unroll
    for (int u = 0; u < kGroup; ++u) {
      const int64_t tile = group * kGroup + u;
      if constexpr (V == kBlockElements) {
        // The lane moves what it has drawn for: no bits need to be gathered where there is no tie.
        const uint64_t block = block_of(tile);
        const PhiloxWords words = philox(state.offset / 4, block, state.seed);
        Access out;
        if (any_tie(words, threshold)) {
          const uint32_t bits = keep_bits_tied(words, block, state, threshold);
          out = dropped(v[u][0], transform, [&](int e) { return (bits >> e) & 1u; });
        } else {
          out = dropped(v[u][0], transform, [&](int e) { return at_least(words, e, threshold); });
        }
        store_streaming(reinterpret_cast<Access*>(to + u * kTile + offset_of(0)), out);
      } else {
        const uint32_t bits = bits_of(tile);
#pragma unroll
        for (int k = 0; k < kAccesses; ++k)
          store_streaming(reinterpret_cast<Access*>(to + u * kTile + offset_of(k)),
                          dropped(v[u][k], transform, [&](int e) { return (bits >> (V * k + e)) & 1u; }));
      }
    }
  }

  const int64_t tiles = (n + kTile - 1) / kTile;
  for (int64_t tile = groups * kGroup + first_warp; tile < tiles; tile += warps) {
    const uint32_t bits = bits_of(tile);
    const int64_t base = tile * kTile;
    for (int k = 0; k < kAccesses; ++k)
      for (int e = 0; e < V; ++e) {
        const int64_t i = base + offset_of(k) + e;
        if (i >= n) break;
        const auto element = load(reinterpret_cast<const Vector<T, 1>*>(x + i));
        store(reinterpret_cast<Vector<T, 1>*>(y + i),
              dropped(element, transform, [&](int) { return (bits >> (V * k + e)) & 1u; }));
      }
  }
}

}  // namespace fastreg
