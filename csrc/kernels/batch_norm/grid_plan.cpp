#include "kernels/batch_norm/grid_plan.h"

#include <algorithm>

namespace fastreg {

namespace {

constexpr int64_t kReservedShared = 1024;  // of each block, by the system
constexpr int64_t kLeastVectors = 4;       // that a thread should get, before a group is divided among more blocks
constexpr int64_t kMoreRounds = 4;         // that are tried: fewer teams may leave fewer blocks idle
constexpr double kShareOfL2 = 0.4;
// Costs, in bytes that a multiprocessor could have moved meanwhile.
constexpr double kLaunch = 32768;
constexpr double kReduction = 40960;   // of a group in a block, its latency
constexpr double kWait = 49152;        // for the other blocks of a team
constexpr double kProcessorSpeed = 2;  // one multiprocessor alone moves at most this many times its share
constexpr double kFromL2 = 0.5;        // time of a byte from L2, of a byte from memory
constexpr double kTeams = 1.05;        // where others do as well: blocks that wait hold up other kernels
constexpr double kNarrow = 1.05;       // runs of 64 bytes, not of whole cache lines

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

BatchNormPlan refused(Tier tier, const std::string& why) {
  BatchNormPlan plan;
  plan.tier = tier;
  plan.refusal = why;
  return plan;
}

// The plan for groups of `columns` vectors, `buffers` of them in flight for each team, in `more` rounds than it takes.
BatchNormPlan plan_of(const BatchNormProblem& p, const DeviceLimits& limits, Tier tier, int columns, int buffers,
                      int64_t more) {
  const BatchNormShape& s = p.shape;
  const bool backward = p.pass == BatchNormPass::train_backward;
  const int vector = grid_vector(p.element_bytes, s.rows, backward, p.fused), vector_bytes = vector * p.element_bytes;
  const int tensors = backward ? 2 : 1;
  const int threads = std::min(limits.threads_per_block, kGridThreads);
  const int64_t per_multiprocessor = std::min(kGridResident, limits.threads_per_multiprocessor / threads);
  const int64_t resident = limits.multiprocessors * per_multiprocessor;

  BatchNormPlan plan;
  plan.tier = tier;
  plan.threads = threads;
  plan.columns = columns;
  plan.buffers = buffers;
  plan.channels_per_block = s.rows ? columns * vector : 1;
  plan.accesses = tensors + 1;
  add_epilogue(p, 1, s.rows ? s.channels : s.size, plan);
  const int64_t groups = ceil_div(s.channels, plan.channels_per_block);

  // In steps, of one vector for each thread of a block: of a group; of what a block can keep; of what fits into L2.
  const int64_t length = s.rows ? s.per_channel() : s.planes * (s.size / vector), per_step = threads / columns;
  const int64_t steps = ceil_div(length, per_step), step_bytes = int64_t(threads) * vector_bytes * tensors * buffers;
  const int64_t scratch = grid_scratch_bytes(threads, s.rows ? vector : 1, int(plan.channels_per_block));
  const int64_t shared =
      std::min(limits.shared_per_block, limits.shared_per_multiprocessor / per_multiprocessor - kReservedShared);
  const int64_t keeps = std::max<int64_t>(0, shared - scratch) / step_bytes;
  const int64_t cached = tier == Tier::l2 ? int64_t(kShareOfL2 * double(limits.l2_bytes)) / step_bytes : 0;

  // As many teams at a time as that leaves room for, or fewer; then no more than do it in as many rounds.
  const int64_t least_blocks = keeps > 0 ? ceil_div(steps, keeps) : steps + resident;
  const int64_t most_teams = tier == Tier::grid ? resident / least_blocks : (cached + resident * keeps) / steps;
  if (scratch > shared || most_teams == 0) {
    return refused(tier, tier == Tier::grid ? "a group of channels does not fit into shared memory"
                                            : "a group of channels does not fit into shared memory and L2");
  }
  const int64_t rounds = ceil_div(groups, std::min(resident, most_teams)) + more;
  const int64_t teams = ceil_div(groups, rounds);
  int64_t splits = std::min(resident / teams, ceil_div(steps, kLeastVectors));
  if (tier == Tier::grid) splits = std::max(splits, least_blocks);
  const int64_t share = ceil_div(steps, splits);
  plan.split_length = share * per_step;
  plan.splits = int(ceil_div(length, plan.split_length));
  if (tier == Tier::l2 && share <= keeps) return refused(tier, "all of it fits into shared memory");
  if (plan.splits > 1 && !limits.co_resident) return refused(tier, "blocks must not wait for each other");

  plan.kept = int(std::min(share, keeps));
  plan.blocks = teams * plan.splits;
  plan.shared_bytes = scratch + plan.kept * step_bytes;
  // The first vectors of every thread are kept, and so the first of every split.
  const auto left = [&](int64_t of) { return double(std::max<int64_t>(0, of - plan.kept * per_step)); };
  const int64_t last = length - (plan.splits - 1) * plan.split_length;
  plan.reread = ((plan.splits - 1) * left(plan.split_length) + left(last)) / double(length);

  const double rest = double(teams) * plan.reread * double(steps);  // in flight, to be left in L2
  if (rest > double(cached)) return refused(tier, "what does not fit into shared memory does not fit into L2 either");

  const double block_bytes = double(share * threads * vector_bytes);
  const double round = std::max(double(plan.blocks) * block_bytes / limits.multiprocessors,
                                double(ceil_div(plan.blocks, limits.multiprocessors)) * block_bytes / kProcessorSpeed);
  // While a block reduces or waits, its second group, or another team's block beside it, moves data.
  const int left_in_l2 = backward && p.fused ? tensors + 1 : tensors;  // written there, before it is read
  const double work = (plan.accesses + kFromL2 * left_in_l2 * plan.reread) * round;
  const double wait = plan.splits > 1 ? kWait : 0;
  const bool overlaps = per_multiprocessor > 1 && (buffers > 1 || plan.splits == 1);
  const double next = overlaps ? std::max(work, work / 2 + kReduction) : work + kReduction + wait;
  plan.cost = plan.launches * kLaunch + work + wait + double(rounds - 1) * next;
  if (plan.splits > 1) plan.cost *= kTeams;
  if (s.rows && columns * vector_bytes < 128 && columns * vector < s.channels) plan.cost *= kNarrow;
  return plan;
}

}  // namespace

BatchNormPlan grid_plan(const BatchNormProblem& p, const DeviceLimits& limits, Tier tier) {
  const BatchNormShape& s = p.shape;
  if (p.pass != BatchNormPass::train && p.pass != BatchNormPass::train_backward)
    return refused(tier, "evaluation reads each tensor once as it is");
  if (p.element_bytes > 4) return refused(tier, "fp64 is streamed");
  if (p.epilogue.slopes) return refused(tier, "there are no registers for learned slopes");
  if (!p.aligned) return refused(tier, "the tensors are not aligned to 16 bytes");
  if ((s.rows ? s.channels : s.size) * p.element_bytes % 16 != 0)
    return refused(tier, s.rows ? "rows are not multiples of 16 bytes" : "planes are not multiples of 16 bytes");

  // Groups of whole cache lines or half ones, or all channels where there are fewer.
  std::optional<BatchNormPlan> best;
  const int vector = grid_vector(p.element_bytes, s.rows, p.pass == BatchNormPass::train_backward, p.fused);
  for (const int run : {128, 64}) {
    int columns = 1;
    while (s.rows && columns * vector * p.element_bytes < run && columns < s.channels / vector) columns *= 2;
    for (const int buffers : {1, 2}) {
      for (int64_t more = 0; more < kMoreRounds; ++more) {
        const BatchNormPlan plan = plan_of(p, limits, tier, columns, buffers, more);
        if (!best || (plan.possible() && (!best->possible() || plan.cost < best->cost))) best = plan;
      }
    }
  }
  return *best;
}

}  // namespace fastreg
