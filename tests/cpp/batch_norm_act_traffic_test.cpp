// What the plan of a batch norm with an epilogue says that it moves, against what the executor counts.
#include "batch_norm_act_checks.h"
#include "batch_norm_slab_ways.h"

namespace fastreg {
namespace {

uint64_t bytes_of(const std::map<std::string, host_executor::Traffic>& traffic, const char* name) {
  const auto found = traffic.find(name);
  return found == traffic.end() ? 0 : found->second.bytes;
}

// One pass. elements: of a tensor; width: of the vectors that a thread moves.
template <class T>
void expect_promised(const BatchNormPlan& plan, const BatchNormPlan& plain, const host_executor::Result& result,
                     uint64_t elements, uint64_t width, const std::string& what) {
  const host_executor::Counts counts = result.counts_of("");
  const uint64_t bytes = elements * sizeof(T);
  expect_equal(bytes_of(counts.load_of, "residual") + bytes_of(counts.store_of, "dresidual"),
               uint64_t(plan.accesses - plain.accesses) * bytes, what + " bytes of residuals");
  if (plan.tier != Tier::streamed) {
    uint64_t all = 0;
    for (const char* name : {"x", "dy", "residual"}) all += bytes_of(counts.load_of, name);
    for (const char* name : {"y", "dx", "dresidual"}) all += bytes_of(counts.store_of, name);
    expect_equal(all, uint64_t(plan.accesses) * bytes, what + " bytes in all");
  }
  if (plan.shares_gates) {
    expect_equal(plan.gate_accesses, 2, what + " accesses of shared gates");
    expect(counts.atomics > 0 && counts.atomics <= elements / width, what + " atomic operations");
    expect_equal(plan.launches, plain.launches + 1, what + " launches");
    return;
  }
  expect_equal(plan.launches, plain.launches, what + " launches");
  const bool writes = counts.store_of.count("y") > 0;
  // Loaded by each vector that has a part in the byte.
  const uint64_t loaded = bytes_of(counts.load_of, "gate") * width / 8, stored = bytes_of(counts.store_of, "gate");
  expect_equal(loaded + stored, uint64_t(plan.gate_accesses) * elements / 8, what + " bytes of gates");
  expect_equal(stored, writes ? uint64_t(plan.gate_accesses) * elements / 8 : 0, what + " bytes of gates written");
}

template <class T>
bool check_traffic(const FusedCase& c) {
  FusedRun<T> r(c);
  if (!r.possible()) return false;
  r.run({}, true);
  const std::string what = describe(testing::type_name<T>(), c);
  BatchNormProblem problem = r.problem;
  problem.epilogue = {};
  const auto plain = [&](BatchNormPass pass) {
    problem.pass = pass;
    return plan_batch_norm(problem, c.limits, c.tier);
  };
  const uint64_t elements = r.x.size(), whole = 16 / sizeof(T);
  const bool vectors =
      c.tier != Tier::streamed || (sizeof(T) <= 4 && (c.shape.rows ? c.shape.channels : c.shape.size) % whole == 0);
  const uint64_t forward_width = vectors ? whole : 1;
  const uint64_t backward_width =
      c.tier == Tier::streamed && c.shape.rows ? std::min<uint64_t>(forward_width, 4) : forward_width;
  const BatchNormPass forward = c.training ? BatchNormPass::train : BatchNormPass::eval;
  const BatchNormPass backward = c.training ? BatchNormPass::train_backward : BatchNormPass::eval_backward;
  expect_promised<T>(r.forward_plan, plain(forward), r.forward, elements, forward_width, what + " forward");
  expect_promised<T>(r.backward_plan, plain(backward), r.backward, elements, backward_width, what + " backward");
  return true;
}

const BatchNormShape kShapes[] = {{16, 4, 64, false}, {4, 6, 196, false}, {10, 24, 49, false},
                                  {3, 5, 7, false},   {64, 16, 1, true},  {16, 12, 1, true}};

const testing::Test promised("batch norm and activation: the plan counts residuals and gates", [] {
  std::vector<Way> all = ways();
  all.push_back({"streamed", Tier::streamed, {}, 1, 1});
  int sharing = 0, passes = 0;
  for (const Way& way : all)
    for (const BatchNormShape& shape : kShapes)
      for (const ActivationKind act :
           {ActivationKind::relu, ActivationKind::silu, ActivationKind::prelu, ActivationKind::identity})
        for (const bool residual : {true, false})
          for (const bool training : {true, false}) {
            FusedCase c = {shape, {}, {act}, residual, true};
            c.training = training;
            c.tier = way.tier;
            c.limits = way.limits;
            testing::for_each_type([&](auto type) { passes += check_traffic<decltype(type)>(c); });
            const BatchNormProblem problem = {
                shape, 4, true, BatchNormPass::train, true, epilogue_traffic(act, residual, false)};
            sharing += plan_batch_norm(problem, way.limits, way.tier).shares_gates;
          }
  expect(passes > 200 && sharing > 10, "of both kinds");
});

// Groups of channels whose runs are whole bytes of gates cost less than a launch that clears them.
const testing::Test grouping("batch norm and activation: items of whole bytes of gates", [] {
  BatchNormProblem problem = {{32, 512, 49, false}, 4, true, BatchNormPass::train, true};
  const DeviceLimits limits = *typical_limits(90);
  expect_equal(plan_batch_norm(problem, limits, Tier::slab).channels_per_block, 4, "without gates");
  problem.epilogue = epilogue_traffic(ActivationKind::relu, true, false);
  const BatchNormPlan plan = plan_batch_norm(problem, limits, Tier::slab);
  expect_equal(plan.channels_per_block, 8, "with gates");
  expect(!plan.shares_gates && plan.launches == 1 && plan.accesses == 3 && plan.gate_accesses == 1, "one launch");
  expect_equal(plan.bytes_per_element(4), 12.125, "bytes");
  problem.shape.channels = 12;  // an item would be cut short within a byte
  expect(plan_batch_norm(problem, limits, Tier::slab).shares_gates, "12 channels");
});

const testing::Test rules("batch norm and activation: what an epilogue moves", [] {
  const auto told = [](ActivationKind act, bool residual, bool backward) {
    const EpilogueTraffic t = epilogue_traffic(act, residual, backward);
    return std::string(t.residual ? "residual " : "") + (t.gate ? "gate " : "") + (t.grad_residual ? "gradient" : "");
  };
  expect_equal(told(ActivationKind::relu, true, false), "residual gate ", "relu forward");
  expect_equal(told(ActivationKind::relu, true, true), "gate gradient", "relu backward");
  expect_equal(told(ActivationKind::silu, true, false), "residual ", "silu forward");
  expect_equal(told(ActivationKind::silu, true, true), "residual gradient", "silu backward");
  expect_equal(told(ActivationKind::identity, true, true), "gradient", "sum backward");
  expect_equal(told(ActivationKind::prelu, true, true), "residual gradient", "prelu backward");
  expect_equal(told(ActivationKind::relu, false, true), "", "no residual");
});

const testing::Test slopes("batch norm and activation: learned slopes are not for teams of blocks", [] {
  for (const Tier tier : {Tier::grid, Tier::l2}) {
    BatchNormProblem problem = {{256, 64, 112 * 112, false}, 2, true, BatchNormPass::train_backward, true};
    expect(plan_batch_norm(problem, *typical_limits(90), tier).possible(), "without");
    problem.epilogue = epilogue_traffic(ActivationKind::prelu, false, true);
    expect_equal(plan_batch_norm(problem, *typical_limits(90), tier).refusal,
                 "there are no registers for learned slopes", tier_name(tier));
  }
});

}  // namespace
}  // namespace fastreg
