// The ways in which the slab kernels divide their work, each forced by the limits of a device.
#pragma once

#include <string>
#include <vector>

#include "kernels/batch_norm/plan.h"

namespace fastreg {

// The virtual device; one multiprocessor of it is planned for, so that few channels take several turns.
inline DeviceLimits limits_of(int cluster, int threads = 64) {
  DeviceLimits limits = *typical_limits(90);
  limits.multiprocessors = 1;
  limits.threads_per_block = limits.threads_per_multiprocessor = threads;
  for (int& clusters : limits.clusters) clusters = 0;
  for (int i = 0; i < kClusterSizes; ++i)
    if (1 << i == cluster) limits.clusters[i] = 1;
  return limits;
}

struct Way {
  const char* name;
  Tier tier;
  DeviceLimits limits;
  int cluster, buffers;  // that it is about
};

inline std::vector<Way> ways() {
  Way single = {"slab", Tier::slab, limits_of(1), 1, 1};
  single.limits.multiprocessors = 1000;
  Way wide_cluster = {"clusters of 16", Tier::cluster, limits_of(16, 32), 16, 1};
  wide_cluster.limits.clusters[4] = 1000;
  return {single,
          {"slab, two buffers", Tier::slab, limits_of(1, 128), 1, 2},
          {"clusters of 2, two buffers", Tier::cluster, limits_of(2), 2, 2},
          {"clusters of 4, two buffers", Tier::cluster, limits_of(4), 4, 2},
          wide_cluster};
}

}  // namespace fastreg
