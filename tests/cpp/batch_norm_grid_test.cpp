// The batch norm kernels of teams of co-resident blocks.
#include <limits>

#include "batch_norm_checks.h"
#include "batch_norm_grid_ways.h"

namespace fastreg {
namespace {

const testing::Test shapes("batch norm teams: shapes, types, ways", [] {
  for_each_on_chip_type([&](auto type) {
    using T = decltype(type);
    for (const GridWay& way : grid_ways(kVector<T>)) {
      Variant v;
      v.tier = way.tier;
      v.limits = way.limits;
      bool used = false;
      int accepted = 0;
      for (const BatchNormShape& shape : kGridShapes) {
        const BatchNormPlan plan =
            plan_batch_norm({shape, int(sizeof(T)), true, BatchNormPass::train_backward}, way.limits, way.tier);
        used |= plan.possible() && plan.buffers == way.buffers && (plan.splits > 1) == way.splits &&
                (plan.kept > 0) == way.kept && (!way.sets || grid_set(plan.splits, shape.rows) > 1);
        bool done = false;
        for (const Schedule& schedule : testing::kernel_schedules()) done = check<T>(shape, v, schedule);
        accepted += done;
      }
      const std::string name = std::string(way.name) + " " + testing::type_name<T>();
      expect(used, name + ": used");
      testing::note(name + ": " + std::to_string(accepted) + " shapes of " + std::to_string(std::size(kGridShapes)));
    }
  });
});

const testing::Test variants("batch norm teams: parameters, momentum, large means", [] {
  Variant bare, mixed, cumulative, far;
  bare.parameters = false;
  mixed.float_values = true;
  cumulative.cumulative = true;
  far.mean = 1e4;
  far.deviation = 1e-2;
  for_each_on_chip_type([&](auto type) {
    using T = decltype(type);
    for (const GridWay& way : grid_ways(kVector<T>)) {
      for (Variant* v : {&bare, &mixed, &cumulative, &far}) v->tier = way.tier, v->limits = way.limits;
      for (const Schedule& schedule : testing::kernel_schedules()) {
        for (const BatchNormShape& shape : {kGridShapes[5], kGridShapes[10]}) {
          check<T>(shape, bare, schedule);
          check<T>(shape, cumulative, schedule);
          if (sizeof(T) == 2) check<T>(shape, mixed, schedule);
          if (sizeof(T) == 4) check<T>(shape, far, schedule);
        }
      }
    }
  });
});

// One training step, forward and backward, of given values; no parameters.
struct Step {
  Step(const BatchNormShape& shape, const GridWay& way, Doubles values, bool count = false,
       const Schedule& schedule = {})
      : problem(problem_of(shape, 0, 1)),
        x(rounded<float>(values), "x"),
        dy(rounded<float>(problem.dy), "dy"),
        y(values.size(), "y"),
        dx(values.size(), "dx"),
        stats(3 * size_t(shape.channels), "stats") {
    problem.x = values;
    problem.weight.assign(size_t(shape.channels), 1.0);
    problem.bias.assign(size_t(shape.channels), 0.0);
    const Device device = testing::virtual_device();
    BatchNormProblem planned = {shape, 4, true, BatchNormPass::train};
    forward_plan = plan_batch_norm(planned, way.limits, way.tier);
    planned.pass = BatchNormPass::train_backward;
    backward_plan = plan_batch_norm(planned, way.limits, way.tier);
    const std::string what = std::string(way.name) + " " + fastreg::describe(shape);
    if (!expect(forward_plan.possible() && backward_plan.possible(), what + ": " + forward_plan.refusal)) return;
    ChannelStatistics statistics;
    statistics.stats = stats.data();
    statistics.eps = problem.eps;
    const RunningUpdate running;
    Scratch forward_scratch(batch_norm_workspace(forward_plan, planned, &running, device));
    Scratch backward_scratch(batch_norm_workspace(backward_plan, planned, nullptr, device));
    forward = testing::run_clean(schedule, count, what, [&] {
      return launch_batch_norm_train<float>(forward_plan, x.data(), y.data(), shape, {}, {}, statistics, running,
                                            forward_scratch.workspace(), device);
    });
    backward = testing::run_clean(schedule, count, what, [&] {
      return launch_batch_norm_backward<float>(backward_plan, dy.data(), x.data(), dx.data(), shape, {}, statistics, {},
                                               {}, nullptr, backward_scratch.workspace(), device);
    });
  }

  Problem problem;
  Buffer<float> x, dy, y, dx, stats;
  BatchNormPlan forward_plan, backward_plan;
  host_executor::Result forward, backward;
};

// At any ratio of mean and deviation; constant channels give 0 exactly; what is not finite stays in its channel.
const testing::Test numerics("batch norm teams: numerics", [] {
  const BatchNormShape shapes[] = {{33, 40, 3, true}, {11, 5, 200, false}};
  for (const GridWay& way : grid_ways(kVector<float>)) {
    for (const BatchNormShape& shape : shapes) {
      const std::string what = std::string(way.name) + " " + fastreg::describe(shape);
      if (!plan_batch_norm({shape, 4, true, BatchNormPass::train_backward}, way.limits, way.tier).possible()) continue;
      Doubles values = problem_of(shape, 0, 1).x;
      constexpr double kRatios[] = {1, 1e2, 1e4, 1e6};
      const int64_t constant = 1, nan = 2, infinite = 3;
      for (int64_t c = 0; c < shape.channels; ++c)
        for (int64_t i = 0; i < shape.per_channel(); ++i) {
          double& value = values[at(shape, c, i)];
          value = c == constant ? 12345.678 : value + kRatios[c % 4];
        }
      values[at(shape, nan, shape.per_channel() - 1)] = std::numeric_limits<double>::quiet_NaN();
      values[at(shape, infinite, shape.per_channel() / 2)] = std::numeric_limits<double>::infinity();
      const Step step(shape, way, values);

      Problem finite = step.problem;  // as fp32 holds it
      for (size_t i = 0; i < finite.x.size(); ++i)
        finite.x[i] = std::isfinite(values[i]) ? double(float(values[i])) : 0;
      const Statistics batch = batch_statistics(finite);
      const Doubles y = normalised(finite, batch), dx = gradients(finite, batch, true).dx;
      double y_error = 0, dx_error = 0;
      for (int64_t c = 0; c < shape.channels; ++c)
        for (int64_t i = 0; i < shape.per_channel(); ++i) {
          const size_t j = at(shape, c, i);
          if (c == nan || c == infinite) {
            expect(std::isnan(step.y[j]), what + ": not finite in its channel");
          } else if (c == constant) {
            expect(step.y[j] == 0, what + ": constant");
          } else {
            y_error = std::max(y_error, std::fabs(step.y[j] - y[j]));
            dx_error = std::max(dx_error, std::fabs(step.dx[j] - dx[j]));
          }
        }
      // Deviations of 0.6: values of up to 2, gradients of up to 2.
      expect(y_error < 4e-6, what + ": y off by " + std::to_string(y_error * 1e6) + "e-6");
      expect(dx_error < 1e-5, what + ": dx off by " + std::to_string(dx_error * 1e6) + "e-6");
    }
  }
});

// Gradients of the parameters alone: x and dy are read once, whatever is kept.
const testing::Test parameters_alone("batch norm teams: no gradient of the input", [] {
  const BatchNormShape shape = kGridShapes[13];
  for (const GridWay& way : grid_ways(kVector<float>)) {
    Step step(shape, way, problem_of(shape, 0.5, 1.0).x);
    const auto channels = size_t(shape.channels);
    Buffer<float> dweight(channels, "dweight"), dbias(channels, "dbias");
    ChannelStatistics statistics;
    statistics.stats = step.stats.data();
    const BatchNormProblem planned = {shape, 4, true, BatchNormPass::train_backward};
    const Device device = testing::virtual_device();
    Scratch scratch(batch_norm_workspace(step.backward_plan, planned, nullptr, device));
    const auto result = testing::run_clean({}, true, way.name, [&] {
      return launch_batch_norm_backward<float>(step.backward_plan, step.dy.data(), step.x.data(), nullptr, shape, {},
                                               statistics, {dweight.data(), true}, {dbias.data(), true}, nullptr,
                                               scratch.workspace(), device);
    });
    const Gradients g = gradients(step.problem, batch_statistics(step.problem), true);
    const double terms = 1 + std::sqrt(double(shape.per_channel()));
    expect_close(dweight, g.dweight, tolerance<float>(g.dweight, terms), std::string(way.name) + " dweight");
    expect_close(dbias, g.dbias, tolerance<float>(g.dbias, terms), std::string(way.name) + " dbias");
    const host_executor::Counts counts = result.counts_of("batch_norm_grid_backward_kernel");
    for (const char* name : {"x", "dy"})
      expect_equal(counts.load_of.at(name).bytes, uint64_t(shape.elements()) * 4, std::string(way.name) + " " + name);
  }
});

// Results depend neither on the order in which blocks run, nor on who runs.
const testing::Test repeatable("batch norm teams: repeatable bit for bit", [] {
  for (const GridWay& way : grid_ways(kVector<float>)) {
    const BatchNormShape shape = {64, 96, 4, true};
    if (!plan_batch_norm({shape, 4, true, BatchNormPass::train_backward}, way.limits, way.tier).possible()) continue;
    std::vector<float> first;
    for (const Schedule& schedule : testing::kernel_schedules()) {
      const Step step(shape, way, problem_of(shape, 0.5, 1.0).x, false, schedule);
      std::vector<float> all(step.y.begin(), step.y.end());
      all.insert(all.end(), step.dx.begin(), step.dx.end());
      if (first.empty()) first = all;
      expect(all == first, std::string(way.name) + " under " + to_string(schedule));
    }
  }
});

// The bytes that the plan promises: each tensor once, and once more what it leaves in L2.
const testing::Test traffic("batch norm teams: move what the plan promises", [] {
  for (const GridWay& way : grid_ways(kVector<float>)) {
    for (const BatchNormShape& shape : {kGridShapes[12], kGridShapes[13]}) {
      const std::string what = std::string(way.name) + " " + fastreg::describe(shape);
      if (!plan_batch_norm({shape, 4, true, BatchNormPass::train_backward}, way.limits, way.tier).possible()) continue;
      const Step step(shape, way, problem_of(shape, 0.5, 1.0).x, true);
      const double bytes = double(shape.elements()) * 4;
      const auto moved = [&](const host_executor::Result& result, const BatchNormPlan& plan, const char* kernel,
                             const std::vector<const char*>& loaded, const char* stored) {
        const std::string name = what + " " + kernel + ", " + describe(plan);
        const host_executor::Counts counts = result.counts_of(kernel);
        expect_equal(counts.launches, 1u, name + ": launches");
        expect_equal(result.counts.size(), size_t(1), name + ": kernels");
        expect_equal(counts.blocks, uint64_t(plan.blocks), name + ": blocks");
        expect_equal(loaded.size() + 1, size_t(plan.accesses), name + ": accesses");
        for (const char* tensor : loaded) {
          expect_equal(double(counts.load_of.at(tensor).bytes), bytes * (1 + plan.reread),
                       name + ": bytes of " + tensor);
        }
        const host_executor::Traffic& store = counts.store_of.at(stored);
        expect_equal(double(store.bytes), bytes, name + ": bytes of " + stored);
        expect_equal(store.accesses, uint64_t(bytes / 16), name + ": accesses of " + stored);
        expect_equal(store.sectors, uint64_t(bytes / 32), name + ": sectors of " + stored);
        if (plan.tier == Tier::grid) expect_equal(plan.reread, 0.0, name + ": reread");
        testing::note(name + ": reread " + std::to_string(plan.reread) + ", bank conflicts " +
                      std::to_string(counts.bank_conflicts) + " in " + std::to_string(counts.shared_requests));
      };
      moved(step.forward, step.forward_plan, "batch_norm_grid_train_kernel", {"x"}, "y");
      moved(step.backward, step.backward_plan, "batch_norm_grid_backward_kernel", {"x", "dy"}, "dx");
    }
  }
});

}  // namespace
}  // namespace fastreg
