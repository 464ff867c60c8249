// Geometry of the slab kernels, that their plan has to know.
#pragma once

#include <cstdint>

namespace fastreg {

// Threads that a multiprocessor's registers suffice for (128 each).
constexpr int kSlabRegisterThreads = 512;
constexpr int kSlabThreads = 512;  // per block, at most

// Shared memory besides the tiles: `entries` results of threads or warps, two partial results per channel for the
// cluster, and per channel what the elementwise step needs (no more than 32 bytes each, 16-byte aligned).
constexpr int64_t slab_entries(int threads, bool grouped) { return grouped ? 2 * threads : threads / 32; }
constexpr int64_t slab_scratch_bytes(int threads, int channels, bool grouped) {
  return 16 * slab_entries(threads, grouped) + int64_t(channels) * (2 * 16 + 32);
}

}  // namespace fastreg
