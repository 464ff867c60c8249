// The ways in which teams of blocks divide their work, each forced by the limits of a device, and shapes to divide.
#pragma once

#include <string>
#include <vector>

#include "kernels/batch_norm/grid_plan.h"
#include "kernels/common/types.h"
#include "kernels/common/vector.h"

namespace fastreg {

struct GridWay {
  const char* name;
  Tier tier;
  DeviceLimits limits;
  int buffers;
  bool splits, kept;  // whether groups are divided, and anything is kept: what it is about
  bool sets = false;  // whether teams are so large that sets of their results are merged first
};

// For elements of which `vector` make 16 bytes.
inline std::vector<GridWay> grid_ways(int vector) {
  // The virtual device, with shared memory for so many vectors a thread, and an L2 of so many bytes.
  const auto limits_of = [&](int multiprocessors, int kept, int64_t l2_bytes) {
    DeviceLimits limits = *typical_limits(90);
    limits.multiprocessors = multiprocessors;
    limits.threads_per_block = 64;
    limits.threads_per_multiprocessor = 128;
    limits.shared_per_block = grid_scratch_bytes(64, vector, 8 * vector) + kept * 64 * 16;
    limits.l2_bytes = l2_bytes;
    return limits;
  };
  GridWay alone = {"blocks alone", Tier::grid, limits_of(4, 100, 0), 1, false, true};
  alone.limits.co_resident = false;
  return {alone,
          {"teams", Tier::grid, limits_of(4, 100, 0), 1, true, true},
          {"large teams", Tier::grid, limits_of(8, 20, 0), 1, true, true, true},
          {"teams in several rounds", Tier::grid, limits_of(2, 32, 0), 2, true, true},
          {"teams, part of it left in L2", Tier::l2, limits_of(2, 6, 5 << 16), 2, true, true},
          {"teams, all of it left in L2", Tier::l2, limits_of(4, 0, 5 << 16), 2, true, false}};
}

// Rows: fewer channels than a group, several groups, a smaller last one; rows that divide evenly and that do not, two
// of them. Planes: one channel and several, short and long ones. Of both, 2048 vectors a group in fp32 and in 16 bits;
// and runs of an odd number of vectors.
inline const BatchNormShape kGridShapes[] = {
    {2, 8, 1, true},     {9, 8, 1, true},    {33, 40, 3, true},   {300, 8, 4, true}, {2, 264, 1, true},
    {61, 168, 2, true},  {130, 24, 1, true}, {2, 3, 8, false},    {5, 3, 48, false}, {40, 1, 96, false},
    {11, 4, 200, false}, {2, 1, 16, false},  {8, 3, 1024, false}, {64, 96, 4, true}, {4, 3, 4096, false},
    {64, 192, 4, true},  {61, 20, 2, true},  {33, 4, 3, true},    {7, 3, 52, false}, {300, 16, 4, true},
};

// f(T{}) for the types that have such kernels.
template <class F>
void for_each_on_chip_type(F&& f) {
  f(float{});
  f(half{});
  f(bfloat16{});
}

inline std::string describe(const BatchNormPlan& plan) {
  return std::to_string(plan.blocks) + " blocks in teams of " + std::to_string(plan.splits) + ", " +
         std::to_string(plan.buffers) + " buffers, " + std::to_string(plan.kept) + " kept";
}

}  // namespace fastreg
