// Geometry of the slab kernels, as far as their plan has to know it.
#pragma once

#include "kernels/common/portable.h"

namespace fastreg {

constexpr int kSlabThreads = 512;          // per block, at most
constexpr int kSlabRegisterThreads = 512;  // that the registers of a multiprocessor suffice for

// Shared memory besides the tiles: `entries` results of threads or warps; per channel two partial results for the
// cluster, and what the elementwise step needs.
constexpr int64_t kSlabResultBytes = 20, kSlabStepBytes = 16;
FASTREG_HD constexpr int64_t slab_entries(int threads, bool grouped) { return grouped ? 2 * threads : threads / 32; }
FASTREG_HD constexpr int64_t slab_scratch_bytes(int threads, int channels, bool grouped) {
  const int64_t bytes = kSlabResultBytes * (slab_entries(threads, grouped) + 2 * channels) + kSlabStepBytes * channels;
  return (bytes + 15) / 16 * 16;
}

// Vectors of an item, in runs of `run_vectors` in a plane, that the blocks of a cluster do not divide: the runs of
// grouped channels; else pairs, where runs consist of them.
constexpr int64_t slab_part(int64_t run_vectors, bool grouped) {
  return grouped ? run_vectors : run_vectors % 2 == 0 ? 2 : 1;
}
// Vectors of one tensor that a block holds: the largest share.
constexpr int64_t slab_share(int64_t planes, int64_t run_vectors, bool grouped, int cluster) {
  const int64_t part = slab_part(run_vectors, grouped), parts = planes * run_vectors / part;
  return (parts + cluster - 1) / cluster * part;
}

}  // namespace fastreg
