// Dropout: y = keep ? x * scale : 0, the mask recomputed from the random state wherever it is needed.
//
// Algorithm. The stream of dropout_stream.h: one Philox call decides 8 elements, and every draw of it is used.
//
// Thread mapping. A warp works on tiles of 256 elements. Lane l makes the Philox call of one block of 8 elements of
// the tile; then the warp moves the tile in 8 / V coalesced accesses of V elements a lane. Lanes need keep bits that
// other lanes computed, at most one shuffle an access:
//   V = 8 (16-bit types)  lane l moves its own block.
//   V = 4 (fp32)          lane l moves halves of blocks l/2 and 16 + l/2; lane l computes block l/2 + 16 (l & 1), so
//                         that one exchange between neighbours serves both accesses.
//   V = 2, 1              lane l computes block l, and one shuffle fetches the bits for each access. V = 1 serves
//                         pointers that are not 16-byte aligned, and index maps that split blocks.
// A tail is a tile in which some accesses are cut short; all lanes still take part in the exchange.
//
// Bytes per element: sizeof(T) read, sizeof(T) written, no mask. kTilesInFlight tiles a warp are loaded before any is
// used.
#pragma once

#include "device.h"
#include "dropout.h"
#include "memory.h"

namespace fastreg {

constexpr int kWarp = 32;
constexpr int kTile = kWarp * kBlockElements;

// Tiles that a warp loads before it uses any: four accesses in flight.
template <int V>
constexpr int kTilesInFlight = V >= 8   ? 4
                               : V >= 4 ? 2
                                        : 1;

__device__ __forceinline__ RandomState read_state(const StateSource& source) {
  return RandomState{
      source.seed_pointer ? uint64_t(load(source.seed_pointer)) : source.seed,
      source.offset + (source.offset_pointer ? uint64_t(load(source.offset_pointer)) : 0),
  };
}

// Keep bits of the 8 elements from local element j on, when the map may scatter them over several blocks.
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
  for (int k = 0; k < kBlockElements / V; ++k) {
    const int element = (k * kWarp + lane) * V;
    const uint32_t block_bits = __shfl_sync(kAll, bits, element / kBlockElements);
    result |= ((block_bits >> (element % kBlockElements)) & ((1u << V) - 1)) << (V * k);
  }
  return result;
}

template <class T, int V>
__device__ __forceinline__ Vector<T, V> dropped(Vector<T, V> v, uint32_t bits, compute_t<T> scale) {
#pragma unroll
  for (int e = 0; e < V; ++e)
    v.element[e] = (bits >> e) & 1u ? from_compute<T>(to_compute(v.element[e]) * scale) : from_compute<T>(0);
  return v;
}

// kBlockMap: the map takes blocks of 8 elements to blocks of 8.
template <class T, int V, bool kBlockMap>
__global__ void __launch_bounds__(256) dropout_kernel(const T* x, T* y, int64_t n, StateSource source,
                                                      DropThreshold threshold, compute_t<T> scale, IndexMap map) {
  constexpr int kAccesses = kBlockElements / V;
  constexpr int kUnroll = kTilesInFlight<V>;
  using Access = Vector<T, V>;

  const RandomState state = read_state(source);
  if (source.used != nullptr && blockIdx.x == 0 && threadIdx.x == 0) {
    store(source.used, int64_t(state.seed));
    store(source.used + 1, int64_t(state.offset));
  }

  const int lane = int(threadIdx.x) % kWarp;
  const int64_t warps = int64_t(gridDim.x) * (blockDim.x / kWarp);
  const int64_t first_warp = int64_t(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  const int64_t tiles = (n + kTile - 1) / kTile;

  for (int64_t tile = first_warp * kUnroll; tile < tiles; tile += warps * kUnroll) {
    const int64_t base = tile * kTile;
    const int left = int(n - base < kTile * kUnroll ? n - base : kTile * kUnroll);
    Access v[kUnroll][kAccesses];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int k = 0; k < kAccesses; ++k) {
        const int at = u * kTile + (k * kWarp + lane) * V;
        if (at + V <= left) v[u][k] = load_streaming(reinterpret_cast<const Access*>(x + base + at));
      }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t j = base + u * kTile + block_of_lane<V>(lane) * kBlockElements;
      uint32_t bits;
      if constexpr (kBlockMap) {
        bits = keep_bits(map(j) / kBlockElements, state, threshold);
      } else {
        bits = scattered_keep_bits(j, map, state, threshold);
      }
      bits = bits_of_accesses<V>(bits, lane);
#pragma unroll
      for (int k = 0; k < kAccesses; ++k) {
        const int at = u * kTile + (k * kWarp + lane) * V;
        const uint32_t access_bits = bits >> (V * k);
        if (at + V <= left) {
          store_streaming(reinterpret_cast<Access*>(y + base + at), dropped<T, V>(v[u][k], access_bits, scale));
        } else {
          // The last elements of the tensor, fewer than an access.
          for (int e = 0; at + e < left; ++e) {
            const auto element = load(reinterpret_cast<const Vector<T, 1>*>(x + base + at + e));
            store(reinterpret_cast<Vector<T, 1>*>(y + base + at + e), dropped<T, 1>(element, access_bits >> e, scale));
          }
        }
      }
    }
  }
}

}  // namespace fastreg
