#include "kernels/batch_norm/plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/batch_norm/grid_plan.h"
#include "kernels/batch_norm/slab.h"

namespace fastreg {

namespace {

constexpr int64_t kRun = 128;              // bytes: runs in memory should be whole cache lines
constexpr int64_t kLeastShare = 32768;     // bytes that a block should get, before a channel is divided among more
constexpr int64_t kReservedShared = 1024;  // of each block, by the system
// One multiprocessor alone moves at most this many times its share of the memory's speed.
constexpr double kProcessorSpeed = 2;
// Blocks of one load, one computation and one store at a time leave memory idle in between.
constexpr double kSingleBuffer = 1.25;
constexpr double kClusterStep = 1.02;  // cost of doubling the cluster
constexpr double kLaunch = 32768;      // cost of a launch, in bytes that a multiprocessor could have moved meanwhile
constexpr double kCluster = 8192;      // cost of starting clusters, likewise

template <class I>
I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

int log2_of(int cluster) {
  int log = 0;
  while ((1 << log) < cluster) ++log;
  return log;
}

BatchNormPlan refused(Tier tier, const std::string& why) {
  BatchNormPlan plan;
  plan.tier = tier;
  plan.refusal = why;
  return plan;
}

bool is_training(BatchNormPass pass) { return pass == BatchNormPass::train || pass == BatchNormPass::train_backward; }

double bytes_of(const BatchNormProblem& p) { return double(p.shape.elements()) * p.element_bytes; }

BatchNormPlan streamed_plan(const BatchNormProblem& p, const DeviceLimits& limits) {
  const BatchNormShape& s = p.shape;
  BatchNormPlan plan;
  switch (p.pass) {
    case BatchNormPass::train:
      plan.accesses = 3, plan.launches = 2;
      break;
    case BatchNormPass::train_backward:
      plan.accesses = 5, plan.launches = 2;
      break;
    case BatchNormPass::eval:
      plan.accesses = 2;
      break;
    case BatchNormPass::eval_backward:
      plan.accesses = 3;
      break;
  }
  const int64_t run = s.rows ? s.channels : s.size;
  const bool vectors = moves_vectors(p.element_bytes) && p.aligned && run % (16 / p.element_bytes) == 0;
  add_epilogue(p, is_training(p.pass) ? 2 : 1, vectors ? run : 1, plan);
  plan.cost = plan.launches * kLaunch + plan.accesses * bytes_of(p) / limits.multiprocessors;
  return plan;
}

// ---- slab and cluster ----

// Time of `items` items, `resident` of which are processed together, of `share` bytes for each of their blocks.
double waves(int64_t items, int64_t resident, int64_t blocks, double share, const DeviceLimits& limits) {
  const auto wave = [&](int64_t n) {
    const double at_memory_speed = double(n * blocks) * share / limits.multiprocessors;
    const double at_processor_speed = std::ceil(double(n * blocks) / limits.multiprocessors) * share / kProcessorSpeed;
    return std::max(at_memory_speed, at_processor_speed);
  };
  return double(items / resident) * wave(resident) + (items % resident ? wave(items % resident) : 0.0);
}

struct SlabChoice {
  int64_t channels, run_vectors;  // of an item
  bool grouped;
};

// The plan with clusters of this size; refuses where the item's share does not fit.
BatchNormPlan slab_plan_of(const BatchNormProblem& p, const DeviceLimits& limits, const SlabChoice& choice,
                           int cluster) {
  const BatchNormShape& s = p.shape;
  const Tier tier = cluster > 1 ? Tier::cluster : Tier::slab;
  const bool backward = p.pass == BatchNormPass::train_backward;
  const int64_t items = ceil_div(s.channels, choice.channels);
  if (s.planes * choice.run_vectors < cluster * slab_part(choice.run_vectors, choice.grouped))
    return refused(tier, "a channel has too few vectors for a cluster");
  const int64_t share = slab_share(s.planes, choice.run_vectors, choice.grouped, cluster);

  BatchNormPlan plan;
  plan.tier = tier;
  plan.cluster = cluster;
  plan.channels_per_block = choice.channels;
  plan.accesses = backward ? 3 : 2;
  // Of an item, and of one that is cut short.
  add_epilogue(p, 1, std::gcd(choice.channels * s.size, s.channels * s.size), plan);
  // Eight vectors a thread, in whole warps; of grouped channels whole runs.
  const int most = limits.threads_per_block / 32 * 32;
  int64_t threads = 128;
  while (threads < most && threads * 8 < share) threads *= 2;
  if (choice.grouped) threads = std::max(threads, ceil_div<int64_t>(choice.run_vectors, 32) * 32);
  plan.threads = int(std::min<int64_t>(threads, most));

  const int tensors = backward ? 2 : 1;
  const int64_t tile = share * 16 * tensors;
  const int64_t scratch = slab_scratch_bytes(plan.threads, int(choice.channels), choice.grouped);
  if (tile + scratch > limits.shared_per_block)
    return refused(tier, "a block's share of " + std::to_string(tile) + " bytes does not fit into shared memory");

  const auto resident_blocks = [&](int64_t shared) -> int64_t {
    if (cluster > 1) return int64_t(limits.clusters[log2_of(cluster)]) * cluster;
    const int64_t by_shared = limits.shared_per_multiprocessor / (shared + kReservedShared);
    const int64_t by_threads = std::min(limits.threads_per_multiprocessor, kSlabRegisterThreads) / plan.threads;
    return limits.multiprocessors * std::max<int64_t>(1, std::min(by_shared, by_threads));
  };
  const int64_t resident = resident_blocks(tile + scratch) / cluster;
  if (items > resident && 2 * tile + scratch <= limits.shared_per_block) plan.buffers = 2;
  plan.shared_bytes = plan.buffers * tile + scratch;
  const int64_t together = resident_blocks(plan.shared_bytes) / cluster;
  plan.blocks = (plan.buffers == 2 ? std::min(items, together) : items) * cluster;

  const double share_bytes = double(share * 16);
  plan.cost =
      plan.accesses * waves(items, together, cluster, share_bytes, limits) * std::pow(kClusterStep, log2_of(cluster));
  const bool overlaps = plan.buffers == 2 || (cluster == 1 && together >= 2 * limits.multiprocessors);
  if (!overlaps) plan.cost *= kSingleBuffer;
  plan.cost += plan.launches * kLaunch + (cluster > 1 ? kCluster : 0.0);
  return plan;
}

// The plan whose items have runs of multiples of `unit` elements, a multiple of a vector.
BatchNormPlan slab_plan(const BatchNormProblem& p, const DeviceLimits& limits, Tier tier, int unit) {
  const BatchNormShape& s = p.shape;
  const int vector = 16 / p.element_bytes;
  if (!is_training(p.pass)) return refused(tier, "evaluation reads each tensor once as it is");
  if (s.rows) return refused(tier, "the channels lie next to each other");
  if (p.element_bytes > 4) return refused(tier, "fp64 is streamed");
  if (!p.aligned) return refused(tier, "the tensors are not aligned to 16 bytes");
  if (s.channels * s.size % vector != 0) return refused(tier, "planes are not multiples of 16 bytes");
  if (s.per_channel() * p.element_bytes > int64_t(16) * limits.shared_per_block)
    return refused(tier, "a channel does not fit into the shared memory of a cluster");

  SlabChoice choice;
  const int64_t least = unit / std::gcd<int64_t>(s.size, unit);
  choice.channels = least;
  while (choice.channels * s.size * p.element_bytes < kRun && choice.channels < s.channels) choice.channels *= 2;
  choice.channels = std::min(choice.channels, s.channels);
  choice.grouped = choice.channels > 1;
  choice.run_vectors = choice.channels * s.size / vector;
  if (choice.grouped && s.size < vector) return refused(tier, "channels are shorter than 16 bytes in a plane");
  if (choice.grouped && choice.run_vectors > limits.threads_per_block)
    return refused(tier, "runs of grouped channels are longer than a block is wide");

  if (tier == Tier::slab) return slab_plan_of(p, limits, choice, 1);
  BatchNormPlan best = refused(tier, "the device has no clusters");
  const int64_t bytes = s.per_channel() * choice.channels * p.element_bytes;
  for (int log = 1; log < kClusterSizes; ++log) {
    if (limits.clusters[log] == 0) continue;
    const BatchNormPlan plan = slab_plan_of(p, limits, choice, 1 << log);
    const bool too_small = best.possible() && bytes >> log < kLeastShare;
    if (!best.possible() || (plan.possible() && !too_small && plan.cost < best.cost)) best = plan;
  }
  return best;
}

BatchNormPlan slab_plan(const BatchNormProblem& p, const DeviceLimits& limits, Tier tier) {
  const int vector = 16 / p.element_bytes;
  const BatchNormPlan plan = slab_plan(p, limits, tier, vector);
  // Other groups of channels may leave each block its own bytes of gates.
  if (!plan.shares_gates || p.shape.channels * p.shape.size % 8 != 0) return plan;
  const BatchNormPlan whole = slab_plan(p, limits, tier, std::max(vector, 8));
  return whole.possible() && whole.cost < plan.cost ? whole : plan;
}

BatchNormPlan plan_of(Tier tier, const BatchNormProblem& problem, const DeviceLimits& limits) {
  switch (tier) {
    case Tier::slab:
    case Tier::cluster:
      return slab_plan(problem, limits, tier);
    case Tier::grid:
    case Tier::l2:
      return grid_plan(problem, limits, tier);
    default:
      return streamed_plan(problem, limits);
  }
}

}  // namespace

const char* tier_name(Tier tier) {
  switch (tier) {
    case Tier::slab:
      return "slab";
    case Tier::cluster:
      return "cluster";
    case Tier::grid:
      return "grid";
    case Tier::l2:
      return "l2";
    default:
      return "streamed";
  }
}

std::optional<Tier> tier_named(const std::string& name) {
  for (const Tier tier : kTiers)
    if (name == tier_name(tier)) return tier;
  return std::nullopt;
}

EpilogueTraffic epilogue_traffic(ActivationKind act, bool residual, bool backward) {
  const bool gate = residual && is_gated(act), needs_argument = !gate && act != ActivationKind::identity;
  return {residual && (!backward || needs_argument), gate, residual && backward, is_weighted(act)};
}

void add_epilogue(const BatchNormProblem& p, int readings, int64_t run, BatchNormPlan& plan) {
  const bool backward = p.pass == BatchNormPass::train_backward || p.pass == BatchNormPass::eval_backward;
  const int times = backward ? readings : 1;
  plan.accesses += times * p.epilogue.residual + p.epilogue.grad_residual;
  plan.gate_accesses += times * p.epilogue.gate;
  plan.shares_gates = p.epilogue.gate && !backward && run % 8 != 0;
  if (plan.shares_gates) ++plan.launches, ++plan.gate_accesses;
}

std::optional<DeviceLimits> typical_limits(int compute_capability) {
  constexpr int64_t kKiB = 1024, kMiB = kKiB * kKiB;
  switch (compute_capability) {
    case 75:
      return DeviceLimits{75, 40, 512, 1024, 64 * kKiB, 64 * kKiB, 4 * kMiB, {40}, true};
    case 80:
      return DeviceLimits{80, 108, 512, 2048, 163 * kKiB, 164 * kKiB, 40 * kMiB, {108}, true};
    case 86:
      return DeviceLimits{86, 82, 512, 1536, 99 * kKiB, 100 * kKiB, 6 * kMiB, {82}, true};
    case 90:
      return DeviceLimits{90, 132, 512, 2048, 227 * kKiB, 228 * kKiB, 60 * kMiB, {132, 66, 32, 16, 7}, true};
    case 100:
      return DeviceLimits{100, 148, 512, 2048, 227 * kKiB, 228 * kKiB, 126 * kMiB, {148, 74, 36, 18, 8}, true};
    case 120:
      return DeviceLimits{120, 170, 512, 1536, 99 * kKiB, 100 * kKiB, 96 * kMiB, {170, 85, 42, 20, 0}, true};
    default:
      return std::nullopt;
  }
}

BatchNormPlan plan_batch_norm(const BatchNormProblem& problem, const DeviceLimits& limits, std::optional<Tier> tier) {
  if (tier) return plan_of(*tier, problem, limits);
  BatchNormPlan best = streamed_plan(problem, limits);
  for (const Tier candidate : kTiers) {
    const BatchNormPlan plan = plan_of(candidate, problem, limits);
    if (plan.possible() && plan.cost < best.cost) best = plan;
  }
  return best;
}

}  // namespace fastreg
