// Dropout: y = keep ? fma(x, scale, shift) : fill, the mask recomputed from the random state wherever it is needed.
//
// Algorithm. The stream that stream.h defines: one Philox call decides 8 elements, and every draw of it is used.
//
// Thread mapping. A warp works on tiles of 256 elements. Each lane gets the keep bits of 8 neighbours of the tile; then
// the warp moves the tile in 8 / V coalesced accesses of V elements a lane. Lanes need keep bits that other lanes got,
// at most one shuffle an access:
//   V = 8 (16-bit types)  lane l draws for and moves eight l: nothing to exchange.
//   V = 4 (fp32)          lane l moves halves of eights l/2 and 16 + l/2; lane l draws for eight l/2 + 16 (l & 1), so
//                         that one exchange between neighbours serves both accesses.
//   V = 2, 1              lane l draws for eight l, and one shuffle fetches the bits for each access.
// Tiles begin at a 16-byte boundary. Where x and y are off it by the same number of elements, the first access is cut
// short, and the rest is moved by 16 bytes all the same. V = 1 serves pointers that are off it differently.
// Large tensors are taken by groups of kTilesInFlight tiles, all loaded before any is used. Small ones, and what is no
// whole group, go tile by tile; accesses that the tensor's ends cut go element by element. All lanes take part in each
// exchange.
//
// Bytes per element: sizeof(T) read, sizeof(T) written, no mask.
// Instructions per 8 elements, counted in the machine code of each architecture: tests/codegen/table.tsv. A mapping
// that splits blocks of the stream (`any`) makes two Philox calls for 8 elements instead of one.
#pragma once

#include "kernels/dropout/common.cuh"
#include "kernels/dropout/stream_walk.h"

namespace fastreg {

constexpr int kTile = kWarp * kBlockElements;

template <int V>
constexpr int kTilesInFlight = V >= 8   ? 4
                               : V >= 4 ? 2
                                        : 1;

// Where the 8 neighbours of a lane stand in the stream.
enum class Mapping {
  shift,  // eight b of the tiles is block b + first / 8 of the stream
  any,    // in one block, or in several
};

// Blocks of 256 threads that a multiprocessor takes: as many as registers allow without spills.
template <int V, Mapping kMapping>
constexpr int kResident = kMapping == Mapping::shift && V == kBlockElements ? 3 : 2;

// Which eight of the tile a lane draws for.
template <int V>
__device__ __forceinline__ int eight_of_lane(int lane) {
  return V == 4 ? lane / 2 + 16 * (lane & 1) : lane;
}

// From the bits that each lane drew to those of its own accesses: bit V k + e of the result belongs to element e of
// access k. All lanes of the warp call it.
template <int V>
__device__ __forceinline__ uint32_t bits_of_accesses(uint32_t bits, int lane) {
  constexpr unsigned kAll = 0xFFFFFFFFu;
  if constexpr (V == 8) return bits;
  if constexpr (V == 4) {
    // The even lane of a pair holds the eight of access 0, the odd lane that of access 1; each needs the nibble of
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
    const uint32_t eight = __shfl_sync(kAll, bits, element / kBlockElements);
    result |= ((eight >> (element % kBlockElements)) & ((1u << V) - 1)) << (V * k);
  }
  return result;
}

// x and y: where `span` counts from. group_begin, group_end: the groups that are moved whole; the rest of the span is
// moved tile by tile.
template <class T, int V, Mapping kMapping>
__global__ void __launch_bounds__(256, kResident<V, kMapping>)
    dropout_kernel(const T* x, T* y, Span span, int64_t group_begin, int64_t group_end, StateSource source,
                   DropThreshold threshold, Transform<compute_t<T>> transform, StreamMap map) {
  constexpr int kAccesses = kBlockElements / V;
  constexpr int kGroup = kTilesInFlight<V>;
  using Access = Vector<T, V>;

  const RandomState state = read_state(source);
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t warps = warp_count();
  const int eight_in_tile = eight_of_lane<V>(lane);

  // The block of the stream that this lane draws for (shift).
  const auto block_of = [&](int64_t tile) { return map.first / kBlockElements + tile * kWarp + eight_in_tile; };
  // Keep bits for this lane's accesses to a tile. All lanes of the warp call it.
  const auto bits_of = [&](int64_t tile) {
    uint32_t bits;
    if constexpr (kMapping == Mapping::shift) {
      bits = keep_bits(block_of(tile), state, threshold);
    } else {
      const int64_t j = tile * kTile + eight_in_tile * kBlockElements - span.begin;
      const int before = j < 0 ? int(-j) : 0;  // elements before the first
      KeepBits keep(state, threshold);
      bits = keep.of_draws(uint64_t(j + before), kBlockElements - before, map) << before;
    }
    return bits_of_accesses<V>(bits, lane);
  };
  // This lane's access k to a tile, relative to the tile's first element.
  const auto offset_of = [&](int k) { return (k * kWarp + lane) * V; };

  if constexpr (V > 1) {
    for (int64_t group = group_begin + warp_index(); group < group_end; group += warps) {
      const int64_t base = group * (kTile * kGroup);
      Access v[kGroup][kAccesses];
#pragma unroll
      for (int u = 0; u < kGroup; ++u)
#pragma unroll
        for (int k = 0; k < kAccesses; ++k)
          v[u][k] = load_streaming(reinterpret_cast<const Access*>(x + base + u * kTile + offset_of(k)));
      uint32_t group_bits = 0;  // of tile u from bit 8 u on
      if constexpr (kMapping == Mapping::any) {
#pragma unroll 1
        for (int u = 0; u < kGroup; ++u) group_bits |= bits_of(group * kGroup + u) << (kBlockElements * u);
      }
#pragma unroll
      for (int u = 0; u < kGroup; ++u) {
        if constexpr (kMapping == Mapping::shift && V == kBlockElements) {
          // The lane moves what it has drawn for: no bits need to be gathered where there is no tie.
          const uint64_t block = block_of(group * kGroup + u);
          const PhiloxWords words = philox(state.offset / 4, block, state.seed);
          Access out;
          if (any_tie(words, threshold)) {
            const uint32_t bits = keep_bits_tied(words, block, state, threshold);
            out = dropped(v[u][0], transform, [&](int e) { return (bits >> e) & 1u; });
          } else {
            out = dropped(v[u][0], transform, [&](int e) { return at_least(words, e, threshold); });
          }
          store_streaming(reinterpret_cast<Access*>(y + base + u * kTile + offset_of(0)), out);
        } else {
          const uint32_t bits =
              kMapping == Mapping::any ? group_bits >> (kBlockElements * u) : bits_of(group * kGroup + u);
#pragma unroll
          for (int k = 0; k < kAccesses; ++k)
            store_streaming(reinterpret_cast<Access*>(y + base + u * kTile + offset_of(k)),
                            dropped(v[u][k], transform, [&](int e) { return (bits >> (V * k + e)) & 1u; }));
        }
      }
    }
  }

  const int64_t tiles = (span.end + kTile - 1) / kTile - (group_end - group_begin) * kGroup;
  for (int64_t t = warp_index(); t < tiles; t += warps) {
    const int64_t tile = t < group_begin * kGroup ? t : t + (group_end - group_begin) * kGroup;
    const T* from = x + tile * kTile;
    T* to = y + tile * kTile;
    const Part part = span.part(tile * kTile, kTile);
    Access v[kAccesses];
#pragma unroll
    for (int k = 0; k < kAccesses; ++k) {
      const int i = offset_of(k);
      if (part.holds(i, V)) v[k] = load_streaming(reinterpret_cast<const Access*>(from + i));
    }
    const uint32_t bits = bits_of(tile);
#pragma unroll
    for (int k = 0; k < kAccesses; ++k) {
      const int i = offset_of(k);
      if (part.holds(i, V)) {
        store_streaming(reinterpret_cast<Access*>(to + i),
                        dropped(v[k], transform, [&](int e) { return (bits >> (V * k + e)) & 1u; }));
      } else if constexpr (V > 1) {
        for (int e = 0; e < V; ++e) {
          if (!part.holds(i + e, 1)) continue;
          const auto element = load(reinterpret_cast<const Vector<T, 1>*>(from + i + e));
          store(reinterpret_cast<Vector<T, 1>*>(to + i + e),
                dropped(element, transform, [&](int) { return (bits >> (V * k + e)) & 1u; }));
        }
      }
    }
  }
}

}  // namespace fastreg
