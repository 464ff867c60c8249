// The batch norm kernels that keep their input in shared memory, in one block and in clusters.
#include "batch_norm_checks.h"
#include "batch_norm_slab_ways.h"

namespace fastreg {
namespace {

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

// Shapes of one and of several channels an item, that every way accepts in 16 bits.
const BatchNormShape kSeveral[] = {{16, 5, 64, false}, {17, 16, 9, false}};

const testing::Test variants("batch norm slabs: alignment, parameters, momentum, large means", [] {
  for (const Way& way : ways()) {
    Variant good;
    good.tier = way.tier;
    good.limits = way.limits;
    Variant misaligned = good, bare = good, mixed = good, cumulative = good, far = good, farther = good;
    misaligned.offset = 1;
    bare.parameters = false;
    mixed.float_values = true;
    cumulative.cumulative = true;
    far.mean = 1e4;
    far.deviation = 1e-2;
    farther.mean = -1e6;
    for (const BatchNormShape& shape : kSeveral) {
      expect(!check<half>(shape, misaligned, {}), std::string(way.name) + " refuses misaligned tensors");
      for (const Schedule& schedule : testing::kernel_schedules()) {
        bool accepted = true;
        for (const Variant& v : {bare, cumulative}) accepted &= check<half>(shape, v, schedule);
        accepted &= check<half>(shape, mixed, schedule) && check<bfloat16>(shape, mixed, schedule);
        if (shape.size % 4 == 0)
          accepted &= check<float>(shape, far, schedule) && check<float>(shape, farther, schedule);
        expect(accepted, std::string(way.name) + " " + describe(shape) + " accepted");
      }
    }
  }
});

// One training step of fp32, without parameters.
struct Step {
  BatchNormShape shape;
  Buffer<float> x, dy, y, dx, stats, dweight, dbias;

  Step(const BatchNormShape& shape, const std::vector<float>& x, const std::vector<float>& dy)
      : shape(shape),
        x(x, "x"),
        dy(dy, "dy"),
        y(x.size(), "y"),
        dx(x.size(), "dx"),
        stats(3 * size_t(shape.channels), "stats"),
        dweight(size_t(shape.channels), "dweight"),
        dbias(size_t(shape.channels), "dbias") {}

  struct Results {
    BatchNormPlan forward_plan, backward_plan;
    host_executor::Result forward, backward;
  };
  Results run(const Way& way, const Schedule& schedule, bool count, const ChannelValues& bias = {},
              bool with_dx = true) {
    const Device device = testing::virtual_device();
    const std::string what = std::string(way.name) + " " + describe(shape);
    BatchNormProblem problem = {shape, 4, true, BatchNormPass::train};
    Results results;
    results.forward_plan = plan_batch_norm(problem, way.limits, way.tier);
    problem.pass = BatchNormPass::train_backward;
    results.backward_plan = plan_batch_norm(problem, way.limits, way.tier);
    expect(results.forward_plan.possible() && results.backward_plan.possible(), what + " is possible");
    ChannelStatistics statistics;
    statistics.stats = stats.data();
    statistics.eps = 1e-5;
    results.forward = testing::run_clean(schedule, count, what, [&] {
      return launch_batch_norm_train<float>(results.forward_plan, x.data(), y.data(), shape, {}, bias, statistics, {},
                                            {}, device);
    });
    results.backward = testing::run_clean(schedule, count, what, [&] {
      return launch_batch_norm_backward<float>(results.backward_plan, dy.data(), x.data(),
                                               with_dx ? dx.data() : nullptr, shape, {}, statistics,
                                               {dweight.data(), true}, {dbias.data(), true}, nullptr, {}, device);
    });
    return results;
  }
};

Step step_of(const BatchNormShape& shape) {
  Problem p = problem_of(shape, 0.5, 1.0);
  return Step(shape, rounded<float>(p.x), rounded<float>(p.dy));
}
const BatchNormShape kItems[] = {{16, 5, 64, false}, {17, 16, 10, false}, {4, 1, 900, false}};

// Each tensor moves once, in 16-byte accesses, and nothing else of its size does.
const testing::Test traffic("batch norm slabs: move what the plan promises", [] {
  for (const Way& way : ways())
    for (const BatchNormShape& shape : kItems) {
      const std::string what = std::string(way.name) + " " + describe(shape);
      Step step = step_of(shape);
      const auto results = step.run(way, {}, true);
      const uint64_t bytes = uint64_t(shape.elements()) * 4;
      const auto promised = [&](const BatchNormPlan& plan, const host_executor::Counts& counts,
                                const std::vector<const char*>& loaded, const char* stored) {
        uint64_t sum = 0;
        const auto once = [&](const host_executor::Traffic& traffic, const std::string& name) {
          expect_equal(traffic.bytes, bytes, what + " bytes of " + name);
          expect_equal(traffic.accesses, bytes / 16, what + " accesses of " + name);
          sum += traffic.bytes;
        };
        expect_equal(counts.launches, uint64_t(plan.launches), what + " launches");
        expect_equal(counts.blocks, uint64_t(plan.blocks), what + " blocks");
        for (const char* name : loaded) once(counts.load_of.at(name), name);
        once(counts.store_of.at(stored), stored);
        expect_equal(sum, uint64_t(plan.accesses) * bytes, what + " bytes in all");
        for (const char* name : {"x", "dy"}) expect(!counts.store_of.count(name), what + " writes " + name);
        for (const char* name : {"y", "dx"}) expect(!counts.load_of.count(name), what + " reads " + name);
      };
      promised(results.forward_plan, results.forward.counts_of("slab_train"), {"x"}, "y");
      promised(results.backward_plan, results.backward.counts_of("slab_backward"), {"x", "dy"}, "dx");
    }
});

const testing::Test repeatable("batch norm slabs: repeatable bit for bit", [] {
  for (const Way& way : ways())
    for (const BatchNormShape& shape : kItems) {
      Step first = step_of(shape);
      first.run(way, {}, false);
      for (const Schedule& schedule : testing::kernel_schedules()) {
        Step step = step_of(shape);
        step.run(way, schedule, false);
        const auto same = [](const Buffer<float>& a, const Buffer<float>& b) {
          return std::equal(a.begin(), a.end(), b.begin());
        };
        expect(same(first.y, step.y) && same(first.dx, step.dx) && same(first.stats, step.stats) &&
                   same(first.dweight, step.dweight) && same(first.dbias, step.dbias),
               std::string(way.name) + " " + describe(shape) + " under " + to_string(schedule));
      }
    }
});

// A constant channel comes out as the bias; NaN and infinity stay in their channels.
const testing::Test special("batch norm slabs: constant, NaN and infinite channels", [] {
  for (const Way& way : ways())
    for (const BatchNormShape& shape : {kItems[0], kItems[1]}) {
      const std::string what = std::string(way.name) + " " + describe(shape);
      Step clean = step_of(shape);
      clean.run(way, {}, false);
      Step step = step_of(shape);
      for (int64_t i = 0; i < shape.per_channel(); ++i) step.x[at(shape, 0, i)] = 12345.678f;
      step.x[at(shape, 2, shape.per_channel() - 1)] = std::nanf("");
      step.x[at(shape, 4, 3)] = INFINITY;
      std::vector<float> biases(size_t(shape.channels), 0.0f);
      biases[0] = 0.3f;
      Buffer<float> bias(biases, "bias");
      step.run(way, {}, false, {bias.data(), true});
      for (int64_t c = 0; c < shape.channels; ++c)
        for (int64_t i = 0; i < shape.per_channel(); ++i) {
          const size_t j = at(shape, c, i);
          const std::string where = what + " channel " + std::to_string(c);
          if (c == 0) {
            if (!expect_equal(step.y[j], 0.3f, where)) return;
          } else if (c == 2 || c == 4) {
            if (!expect(std::isnan(step.y[j]), where)) return;
          } else if (!expect(step.y[j] == clean.y[j] && step.dx[j] == clean.dx[j], where)) {
            return;
          }
        }
    }
});

const testing::Test sums_only("batch norm slabs: gradients of the parameters alone", [] {
  for (const Way& way : ways())
    for (const BatchNormShape& shape : kItems) {
      Step all = step_of(shape), some = step_of(shape);
      all.run(way, {}, false);
      some.run(way, {}, false, {}, false);
      expect(std::equal(all.dweight.begin(), all.dweight.end(), some.dweight.begin()) &&
                 std::equal(all.dbias.begin(), all.dbias.end(), some.dbias.begin()),
             describe(shape));
      expect_equal(some.dx.unwritten(), some.dx.size(), describe(shape) + " dx");
    }
});

}  // namespace
}  // namespace fastreg
