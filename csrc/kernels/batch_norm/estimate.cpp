#include "kernels/batch_norm/estimate.h"

#include <algorithm>
#include <cmath>

#include "kernels/batch_norm/grid_plan.h"
#include "kernels/batch_norm/streamed_plan.h"

namespace fastreg {

namespace {

// All figures here are assumptions until a GPU has been measured: the data sheets and papers are named as where they
// are remembered from, and were not looked up again.

// ---- Devices ----

// memory: of the vendor's data sheets, of which a copy moves about this share.
constexpr double kCopied = 0.9;
// L2: bytes that a multiprocessor moves in a clock. Measured: 20 on a T4 (Jia et al., "Dissecting the NVidia Turing T4
// GPU via microbenchmarking", 2019), 24 on an H100 (Chips and Cheese, 2023). One figure for all.
constexpr double kL2BytesOfClock = 24;
// A start of a kernel behind another one, and the time until its first blocks load and after its last ones store.
constexpr double kLaunch = 3;
// Reading from memory takes about this many trips to L2: 480 and 260 clocks on an H100 (Luo et al., "Benchmarking and
// dissecting the Nvidia Hopper GPU architecture", 2024).
constexpr double kMemoryTrip = 1.8;

// gigabytes: a second, of the data sheet. clock: GHz, the highest of the data sheet. trip: clocks to L2 and back.
constexpr DeviceSpeed speed_of(double gigabytes, int multiprocessors, double clock, double trip) {
  return {kCopied * gigabytes * 1e3, kL2BytesOfClock * multiprocessors * clock * 1e3, kMemoryTrip * trip / clock / 1e3,
          trip / clock / 1e3, kLaunch};
}

constexpr int64_t kKiB = 1024, kMiB = kKiB * kKiB;
// Limits: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and the data sheets; clusters
// as in typical_limits. Trips: 188 clocks on a T4 (Jia et al.), 200 on an A100 (Abdelkhalik et al., "Demystifying the
// Nvidia Ampere architecture", 2022), 273 on an RTX 4090 (Luo et al.), 290 on an H200 (under some load).
const KnownDevice kDevices[kKnownDevices] = {
    {"H200",
     {90, 132, 512, 2048, 227 * kKiB, 228 * kKiB, 50 * kMiB, {132, 66, 32, 16, 7}, true},
     speed_of(4800, 132, 1.98, 290)},
    {"H100",
     {90, 132, 512, 2048, 227 * kKiB, 228 * kKiB, 50 * kMiB, {132, 66, 32, 16, 7}, true},
     speed_of(3350, 132, 1.98, 290)},
    {"A100", {80, 108, 512, 2048, 163 * kKiB, 164 * kKiB, 40 * kMiB, {108}, true}, speed_of(2039, 108, 1.41, 200)},
    {"L4", {89, 58, 512, 1536, 99 * kKiB, 100 * kKiB, 48 * kMiB, {58}, true}, speed_of(300, 58, 2.04, 273)},
    {"RTX 4090", {89, 128, 512, 1536, 99 * kKiB, 100 * kKiB, 72 * kMiB, {128}, true}, speed_of(1008, 128, 2.52, 273)},
    {"T4", {75, 40, 512, 1024, 64 * kKiB, 64 * kKiB, 4 * kMiB, {40}, true}, speed_of(320, 40, 1.59, 188)},
};

// ---- Waiting ----

constexpr double kBlockStep = 0.25;     // trips: a barrier of a block, with what it hands over through shared memory
constexpr double kHandOver = 3;         // trips: the partial results stored, a counter added to, and what it says seen
constexpr int kAhead = 4;               // partial results that a thread asks for at once
constexpr double kProcessorSpeed = 2;   // one multiprocessor alone moves at most this many times its share of memory's
constexpr double kSingleBuffer = 1.25;  // as in the plan: loads, computation and stores that take turns
constexpr double kShareOfL2 = 0.4;      // what is left there of a pass, for the next one

double ceil_div(double a, double b) { return std::ceil(a / b); }

// Of the threads of a block, `rows` of which share a column.
double of_block(double rows) { return kBlockStep * std::ceil(std::log2(std::max(1.0, rows))); }
// Of `partials` results, by `rows` threads a column.
double of_partials(double partials, double rows, double ahead) {
  return kHandOver + ceil_div(partials, rows * ahead) + of_block(rows);
}

bool is_training(BatchNormPass pass) { return pass == BatchNormPass::train || pass == BatchNormPass::train_backward; }

struct Pass {
  double memory, l2;  // bytes
  double trips;
};

// The tensors that the first pass has read, or those of them that fit, are in L2 for the second.
Pass streamed_pass(const BatchNormProblem& p, const BatchNormPlan& plan, const DeviceLimits& limits) {
  const double elements = double(p.shape.elements()), bytes = plan.bytes_per_element(p.element_bytes) * elements;
  if (!is_training(p.pass)) return {bytes, bytes, 1};
  const double again = (p.pass == BatchNormPass::train ? 1 : 2) * elements * p.element_bytes;
  const double kept = again <= kShareOfL2 * double(limits.l2_bytes) ? again : 0;

  const int64_t run = p.shape.rows ? p.shape.channels : p.shape.size;
  const int vector = p.aligned && run % (16 / p.element_bytes) == 0 ? 16 / p.element_bytes : 1;
  const int threads = kStreamedThreads;
  const StreamedSplits d = streamed_splits(p.shape, vector, threads, limits.multiprocessors);
  const double rows = double(threads) / d.columns, ahead = p.shape.rows ? std::max(1, kAhead / vector) : 1;
  double trips = of_block(rows);
  if (d.splits > 1) trips += of_partials(std::min<double>(double(d.splits), kSplitsTogether), rows, ahead);
  if (d.splits > kSplitsTogether) trips += of_partials(ceil_div(double(d.splits), kSplitsTogether), rows, ahead);
  return {bytes - kept, bytes, trips};
}

// Each block of a team reads the partial results of all, or of all sets.
Pass grid_pass(const BatchNormProblem& p, const BatchNormPlan& plan) {
  const double elements = double(p.shape.elements()), bytes = plan.bytes_per_element(p.element_bytes) * elements;
  const bool backward = p.pass == BatchNormPass::train_backward;
  const double reread = plan.reread * elements * p.element_bytes * (backward ? 2 : 1);
  const double groups = ceil_div(double(p.shape.channels), double(plan.channels_per_block));
  const double rounds = ceil_div(groups * plan.splits, double(plan.blocks));
  const int set = grid_set(plan.splits, p.shape.rows);
  const double sets = ceil_div(plan.splits, set);
  const double partials = groups * plan.splits * sets * double(plan.channels_per_block) * (backward ? 8 : 16);
  const double rows = std::max(1.0, double(plan.threads) / double(plan.channels_per_block));
  double trips = of_block(double(plan.threads) / plan.columns);
  const double ahead = p.fused ? kAhead / 2 : kAhead;
  if (set > 1) trips += of_partials(set, rows, ahead);
  if (plan.splits > 1) trips += of_partials(sets, rows, ahead);
  // With two groups in flight, or another team's block beside it, the wait is for the last one alone.
  const bool overlaps = plan.buffers > 1 || plan.splits == 1;
  return {bytes, bytes + reread + (plan.splits > 1 ? partials : 0), trips * (overlaps ? 1 : rounds)};
}

Pass slab_pass(const BatchNormProblem& p, const BatchNormPlan& plan, const DeviceLimits& limits) {
  const double bytes = plan.bytes_per_element(p.element_bytes) * double(p.shape.elements());
  double trips = of_block(32) + of_block(plan.threads / 32.0);
  if (plan.cluster > 1) trips += kHandOver + of_block(plan.cluster);
  const double items = ceil_div(double(p.shape.channels), double(plan.channels_per_block));
  const double together = double(plan.blocks) / plan.cluster;
  // Multiprocessors without a block are idle, and in the last round those that have no item.
  const double busy = std::min<double>(double(plan.blocks), limits.multiprocessors);
  const double speed = std::min(1.0, kProcessorSpeed * busy / limits.multiprocessors);
  const double uneven = plan.buffers == 2 ? ceil_div(items, together) * together / items : 1;
  const bool overlaps = plan.buffers == 2 || plan.blocks >= 2 * int64_t(limits.multiprocessors);
  return {bytes * std::max(1 / speed, uneven) * (overlaps ? 1 : kSingleBuffer), bytes, trips};
}

}  // namespace

const KnownDevice* known_devices() { return kDevices; }

std::optional<KnownDevice> known_device(const std::string& name) {
  for (const KnownDevice& device : kDevices)
    if (name == device.name) return device;
  return std::nullopt;
}

TimeEstimate estimated_time(const BatchNormProblem& problem, const BatchNormPlan& plan, const DeviceLimits& limits,
                            const DeviceSpeed& speed) {
  const bool is_grid = plan.tier == Tier::grid || plan.tier == Tier::l2;
  const Pass pass = plan.tier == Tier::streamed ? streamed_pass(problem, plan, limits)
                    : is_grid                   ? grid_pass(problem, plan)
                                                : slab_pass(problem, plan, limits);
  TimeEstimate time;
  time.launches = plan.launches * speed.launch;
  time.memory = pass.memory / speed.memory_bytes;
  time.l2 = pass.l2 / speed.l2_bytes;
  time.trips = pass.trips;
  time.reduction = speed.memory_trip + pass.trips * speed.l2_trip;
  return time;
}

}  // namespace fastreg
