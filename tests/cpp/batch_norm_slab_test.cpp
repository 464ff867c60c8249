// The batch norm kernels that keep their input in shared memory, in one block and in clusters.
#include "batch_norm_checks.h"

namespace fastreg {
namespace {

// The virtual device; one multiprocessor of it is planned for, so that few channels take several turns.
DeviceLimits limits_of(int cluster, int threads = 64) {
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

std::vector<Way> ways() {
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

// One channel; two values a channel; planes that are multiples of 16 bytes and groups of channels that are, with and
// without a smaller last group; planes divided among blocks, and vectors.
const BatchNormShape kShapes[] = {
    {2, 1, 8, false},   {1, 3, 64, false},   {3, 4, 16, false},   {2, 3, 512, false},  {16, 5, 64, false},
    {4, 1, 900, false}, {7, 8, 49, false},   {17, 16, 9, false},  {33, 12, 10, false}, {3, 20, 196, false},
    {5, 9, 72, false},  {10, 24, 49, false}, {2, 2, 1800, false},
};

const testing::Test shapes("batch norm slabs: shapes, types, ways", [] {
  for (const Way& way : ways()) {
    Variant v;
    v.tier = way.tier;
    v.limits = way.limits;
    int accepted = 0, refused = 0;
    bool used = false;
    for (const BatchNormShape& shape : kShapes) {
      const BatchNormPlan plan = plan_batch_norm({shape, 4, true, BatchNormPass::train_backward}, way.limits, way.tier);
      used |= plan.possible() && plan.cluster == way.cluster && plan.buffers == way.buffers;
    }
    expect(used, std::string(way.name) + ": used");
    for (const Schedule& schedule : testing::kernel_schedules())
      testing::for_each_type([&](auto type) {
        for (const BatchNormShape& shape : kShapes) ++(check<decltype(type)>(shape, v, schedule) ? accepted : refused);
      });
    testing::note(std::string(way.name) + ": " + std::to_string(accepted) + " accepted, " + std::to_string(refused) +
                  " refused");
  }
});

}  // namespace
}  // namespace fastreg
