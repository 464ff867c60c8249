// Batch norm by teams of co-resident blocks: its plan, and the geometry of its kernels.
#pragma once

#include "kernels/batch_norm/plan.h"
#include "kernels/common/portable.h"

namespace fastreg {

constexpr int kGridThreads = 256;  // a block's, at most
constexpr int kGridResident = 2;   // blocks of so many threads that a multiprocessor's registers hold

// Splits whose results one block of a team merges for all, and counters that a group needs: of the team, and of its
// sets. In planes a group is one channel: what all blocks read of each other is little beside what it consists of.
constexpr int kGridSet = 8;
FASTREG_HD constexpr int grid_set(int splits, bool rows) { return rows && splits > kGridSet ? kGridSet : 1; }
FASTREG_HD constexpr int grid_tickets(int splits, bool rows) {
  return 1 + (grid_set(splits, rows) > 1 ? (splits + kGridSet - 1) / kGridSet : 0);
}

// Elements of a vector: 16 bytes' worth, or half of that where a thread had no registers for what eight channels need.
FASTREG_HD constexpr int grid_vector(int element_bytes, bool rows, bool backward, bool fused) {
  const int vector = 16 / element_bytes;
  return rows && backward && fused && vector > 4 ? 4 : vector;
}

// A block's shared memory: results of half of its threads, one for each of a thread's channels; for each channel of the
// group what the elementwise step needs; and the vectors that its threads keep.
constexpr int64_t kGridResultBytes = 20, kGridStepBytes = 16;
FASTREG_HD constexpr int64_t whole_vectors(int64_t bytes) { return (bytes + 15) / 16 * 16; }
FASTREG_HD constexpr int64_t grid_results_bytes(int threads, int channels_of_thread) {
  return whole_vectors(threads / 2 * channels_of_thread * kGridResultBytes);
}
FASTREG_HD constexpr int64_t grid_scratch_bytes(int threads, int channels_of_thread, int channels_of_group) {
  return grid_results_bytes(threads, channels_of_thread) + whole_vectors(channels_of_group * kGridStepBytes);
}

// The plan of tier grid or l2, which may refuse.
BatchNormPlan grid_plan(const BatchNormProblem& problem, const DeviceLimits& limits, Tier tier);

}  // namespace fastreg
