// The choice of tier, over a large table of shapes, passes, types and devices.
#include "kernels/batch_norm/plan.h"

#include <algorithm>
#include <vector>

#include "kernels/batch_norm/grid_plan.h"
#include "kernels/batch_norm/slab.h"
#include "testing.h"

namespace fastreg {
namespace {

using testing::expect;
using testing::expect_equal;

constexpr int kDevices[] = {75, 80, 86, 90, 100, 120};
constexpr BatchNormPass kPasses[] = {BatchNormPass::train, BatchNormPass::train_backward, BatchNormPass::eval,
                                     BatchNormPass::eval_backward};

struct Named {
  std::string name;
  int64_t planes, channels, size;
};

std::vector<Named> shapes() {
  std::vector<Named> all;
  const auto add = [&](const std::string& name, int64_t planes, int64_t channels, int64_t size) {
    all.push_back({name, planes, channels, size});
  };
  for (const int64_t batch : {32, 64, 256}) {
    const std::string at = " at " + std::to_string(batch);
    add("ResNet-50 stem" + at, batch, 64, 112 * 112);
    for (int stage = 0; stage < 4; ++stage) {
      const int64_t side = 56 >> stage, width = int64_t(64) << stage;
      const std::string name = "ResNet-50 stage " + std::to_string(stage + 2);
      add(name + at, batch, width, side * side);
      add(name + " wide" + at, batch, 4 * width, side * side);
      if (stage > 0) add(name + " first" + at, batch, width, 4 * side * side);
    }
  }
  for (const int64_t side : {128, 64, 32, 16, 8}) {
    add("U-Net 3-D " + std::to_string(side), 2, 32 * 128 / side, side * side * side);
    add("U-Net 3-D one " + std::to_string(side), 1, 32 * 128 / side, side * side * side);
  }
  for (const int64_t batch : {2, 32, 1024, 65536})
    for (const int64_t width : {1, 100, 256, 4096}) add("MLP " + std::to_string(batch), batch, width, 1);
  for (const int64_t size : {1, 2, 3, 7, 8, 9, 15, 49, 63, 64, 121, 289, 1225, 4095, 100001})
    for (const int64_t channels : {1, 3, 7, 8, 24, 1000, 4096})
      for (const int64_t planes : {1, 2, 17, 200}) add("awkward", planes, channels, size);
  add("huge", 3, 5, int64_t(1) << 31);
  add("many channels", 2, int64_t(1) << 24, 8);
  return all;
}

std::string describe(const Named& n, const BatchNormProblem& p, int device) {
  return n.name + (p.shape.rows ? " rows " : " planes ") + std::to_string(n.planes) + "x" + std::to_string(n.channels) +
         "x" + std::to_string(n.size) + " of " + std::to_string(p.element_bytes) + " bytes, pass " +
         std::to_string(int(p.pass)) + (p.fused ? " fused" : "") + ", sm_" + std::to_string(device);
}

// f(name, problem, limits, description)
template <class F>
void for_each_problem(F&& f) {
  for (const int device : kDevices)
    for (const Named& n : shapes())
      for (const BatchNormPass pass : kPasses)
        for (const int bytes : {2, 4, 8})
          for (const bool rows : {false, true})
            for (const bool aligned : {true, false}) {
              BatchNormProblem problem = {{n.planes, n.channels, n.size, rows}, bytes, aligned, pass};
              f(problem, *typical_limits(device), describe(n, problem, device));
              if (!aligned) continue;
              problem.fused = true;
              f(problem, *typical_limits(device), describe(n, problem, device));
            }
}

// What the slab kernels rely on.
void check_slab(const BatchNormPlan& plan, const BatchNormProblem& p, const DeviceLimits& limits,
                const std::string& what) {
  const BatchNormShape& s = p.shape;
  const int64_t vector = 16 / p.element_bytes, group = plan.channels_per_block, run = group * s.size / vector;
  const bool grouped = group > 1, backward = p.pass == BatchNormPass::train_backward;
  const int64_t items = (s.channels + group - 1) / group;
  const auto holds = [&](bool condition, const char* rule) { expect(condition, what + ": " + rule); };
  holds(!s.rows && p.aligned && p.element_bytes <= 4, "planes, aligned, at most 32 bits");
  holds(backward || p.pass == BatchNormPass::train, "training");
  holds(group * s.size % vector == 0 && s.channels * s.size % vector == 0, "runs and planes of whole vectors");
  holds(!grouped || (s.size >= vector && run <= plan.threads), "a vector has two channels, a thread one column");
  holds(plan.threads % 32 == 0 && plan.threads >= 32 && plan.threads <= limits.threads_per_block, "whole warps");
  holds(plan.cluster == 1 ? plan.tier == Tier::slab : plan.tier == Tier::cluster, "clusters where named so");
  holds(plan.cluster == 1 || (limits.compute_capability >= 90 && plan.cluster <= 16), "clusters where there are any");
  holds((grouped ? s.planes : s.planes * run) >= plan.cluster, "no block without work");
  holds(plan.blocks % plan.cluster == 0 && plan.blocks / plan.cluster <= items, "no cluster without an item");
  holds(plan.buffers == 2 || plan.blocks == items * plan.cluster, "an item each, or two buffers");
  holds(s.planes * run < (int64_t(1) << 31) && items < (int64_t(1) << 31), "vectors and items counted in 32 bits");
  holds(plan.shared_bytes <= limits.shared_per_block, "shared memory");
  const int64_t tile = 16 * slab_share(s.planes, run, grouped, plan.cluster) * (backward ? 2 : 1);
  expect_equal(plan.shared_bytes, plan.buffers * tile + slab_scratch_bytes(plan.threads, int(group), grouped),
               what + ": shared memory");
  expect_equal(plan.accesses, backward ? 3 : 2, what + ": accesses");
  expect_equal(plan.launches, 1, what + ": launches");
}

// What the kernels of teams rely on.
void check_grid(const BatchNormPlan& plan, const BatchNormProblem& p, const DeviceLimits& limits,
                const std::string& what) {
  const BatchNormShape& s = p.shape;
  const int tensors = p.pass == BatchNormPass::train_backward ? 2 : 1;
  const int vector = grid_vector(p.element_bytes, s.rows, tensors == 2, p.fused);
  const int vector_bytes = vector * p.element_bytes;
  const int channels_of_thread = s.rows ? vector : 1;
  const int64_t length = s.rows ? s.per_channel() : s.planes * (s.size / vector);
  const int64_t per_step = plan.threads / plan.columns, teams = plan.blocks / plan.splits;
  const auto holds = [&](bool condition, const char* rule) { expect(condition, what + ": " + rule); };
  holds(p.aligned && p.element_bytes <= 4 && (s.rows ? s.channels : s.size) * p.element_bytes % 16 == 0,
        "whole vectors");
  holds(tensors == 2 || p.pass == BatchNormPass::train, "training");
  holds(plan.threads % 32 == 0 && (plan.threads & (plan.threads - 1)) == 0 && plan.threads <= kGridThreads, "threads");
  holds((plan.columns & (plan.columns - 1)) == 0 && (s.rows || plan.columns == 1), "columns");
  holds(plan.channels_per_block == plan.columns * channels_of_thread, "channels of a group");
  holds(plan.channels_per_block <= plan.threads, "a thread for each channel of a group");
  holds(plan.blocks % plan.splits == 0 && teams <= (s.channels - 1) / plan.channels_per_block + 1, "a group a team");
  holds(plan.split_length % per_step == 0 && plan.splits * plan.split_length >= length, "all is shared out");
  holds((plan.splits - 1) * plan.split_length < length, "no block without a share");
  const int resident = std::min(kGridResident, limits.threads_per_multiprocessor / plan.threads);
  holds(plan.blocks <= resident * limits.multiprocessors, "all blocks are resident");
  holds(resident * (plan.shared_bytes + 1024) <= limits.shared_per_multiprocessor, "and their shared memory");
  holds(plan.shared_bytes <= limits.shared_per_block, "shared memory");
  const int64_t kept = int64_t(plan.buffers) * tensors * plan.kept * plan.threads * vector_bytes;
  expect_equal(plan.shared_bytes,
               grid_scratch_bytes(plan.threads, channels_of_thread, int(plan.channels_per_block)) + kept,
               what + ": shared memory");
  const double rest =
      plan.reread * double(length * plan.columns * vector_bytes) * double(teams * plan.buffers * tensors);
  holds((plan.tier == Tier::l2) == (plan.reread > 0) && rest <= 0.4 * double(limits.l2_bytes), "the rest is in L2");
  holds(plan.tier == Tier::l2 || plan.kept * per_step >= plan.split_length, "or there is none");
  holds(plan.launches == 1 && plan.accesses == tensors + 1, "launches, accesses");
  DeviceLimits alone = limits;
  alone.co_resident = false;
  const BatchNormPlan other = plan_batch_norm(p, alone, plan.tier);
  holds(!other.possible() || other.splits == 1, "no block waits where none must");
}

const testing::Test invariants("batch norm plan: fits, and keeps what the kernels rely on", [] {
  int64_t problems = 0, on_chip = 0;
  for_each_problem([&](const BatchNormProblem& p, const DeviceLimits& limits, const std::string& what) {
    ++problems;
    const BatchNormPlan streamed = plan_batch_norm(p, limits, Tier::streamed);
    expect(streamed.possible() && streamed.tier == Tier::streamed && streamed.cost > 0, what + ": streamed");
    const BatchNormPlan best = plan_batch_norm(p, limits);
    expect(best.possible() && best.cost <= streamed.cost, what + ": the cheapest");
    for (const Tier tier : kTiers) {
      const BatchNormPlan plan = plan_batch_norm(p, limits, tier);
      expect(plan.tier == tier, what + ": asked for " + tier_name(tier));
      if (!plan.possible()) continue;
      expect(plan.cost >= best.cost, what + ": " + tier_name(tier) + " is cheaper than the choice");
      expect(plan.launches >= 1 && plan.accesses >= 2, what + ": launches and accesses");
      if (tier == Tier::slab || tier == Tier::cluster) {
        ++on_chip;
        check_slab(plan, p, limits, what);
      }
      if (tier == Tier::grid || tier == Tier::l2) {
        ++on_chip;
        check_grid(plan, p, limits, what);
      }
    }
  });
  testing::note(std::to_string(problems) + " problems, " + std::to_string(on_chip) + " plans on chip");
});

const testing::Test refusals("batch norm plan: a refusal names its reason", [] {
  const DeviceLimits limits = *typical_limits(90);
  const auto refusal = [&](Tier tier, BatchNormProblem p, const DeviceLimits& of) {
    return plan_batch_norm(p, of, tier).refusal;
  };
  const BatchNormProblem good = {{32, 64, 784, false}, 2, true, BatchNormPass::train};
  const auto with = [&](auto change) {
    BatchNormProblem p = good;
    change(p);
    return refusal(Tier::slab, p, limits);
  };
  expect_equal(refusal(Tier::slab, good, limits), std::string(), "good");
  expect_equal(with([](auto& p) { p.shape.rows = true; }), std::string("the channels lie next to each other"), "rows");
  expect_equal(with([](auto& p) { p.element_bytes = 8; }), std::string("fp64 is streamed"), "fp64");
  expect(with([](auto& p) { p.aligned = false; }).find("aligned") != std::string::npos, "alignment");
  expect(with([](auto& p) { p.pass = BatchNormPass::eval; }).find("evaluation") != std::string::npos, "evaluation");
  expect(with([](auto& p) { p.shape = {32, 3, 49, false}; }).find("16 bytes") != std::string::npos, "odd planes");
  expect(with([](auto& p) { p.shape.planes = 500; }).find("does not fit") != std::string::npos, "too large");
  expect(refusal(Tier::cluster, good, *typical_limits(86)).find("clusters") != std::string::npos, "no clusters");
});

const testing::Test names("batch norm plan: tiers by name", [] {
  for (const Tier tier : kTiers) expect(tier_named(tier_name(tier)) == tier, tier_name(tier));
  expect(!tier_named("fastest"), "no such tier");
});

// The plans that matter most, written out: a change of the choice has to be meant. In planes, fp16.
struct Golden {
  int device;
  int64_t planes, channels, size;
  BatchNormPass pass;
  const char* plan;  // tier, blocks, threads, cluster, channels, buffers, shared bytes
};
const Golden kGolden[] = {
#include "batch_norm_plan_golden.inl"
};

std::string summary(const BatchNormPlan& p) {
  if (p.tier == Tier::streamed) return "streamed";
  std::ostringstream line;
  line << tier_name(p.tier) << " " << p.blocks << "x" << p.threads << " cluster " << p.cluster << " channels "
       << p.channels_per_block << " buffers " << p.buffers << " shared " << p.shared_bytes;
  return line.str();
}

const testing::Test golden("batch norm plan: as written out", [] {
  for (const Golden& g : kGolden) {
    const BatchNormProblem p = {{g.planes, g.channels, g.size, false}, 2, true, g.pass};
    // The tiers of this file alone: the choice among all is the other tests' matter.
    BatchNormPlan plan = plan_batch_norm(p, *typical_limits(g.device), Tier::streamed);
    for (const Tier tier : {Tier::slab, Tier::cluster}) {
      const BatchNormPlan other = plan_batch_norm(p, *typical_limits(g.device), tier);
      if (other.possible() && other.cost < plan.cost) plan = other;
    }
    expect_equal(summary(plan), g.plan, describe({"golden", g.planes, g.channels, g.size}, p, g.device));
  }
});

}  // namespace
}  // namespace fastreg
