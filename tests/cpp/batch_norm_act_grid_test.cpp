// Batch norm with an epilogue by teams of co-resident blocks.
#include "batch_norm_act_checks.h"
#include "batch_norm_grid_ways.h"

namespace fastreg {
namespace {

const Activation kNone = {}, kRelu = {ActivationKind::relu}, kLeaky = {ActivationKind::leaky_relu, 0.1},
                 kSilu = {ActivationKind::silu}, kGelu = {ActivationKind::gelu_tanh};

// Each stage with and without each other one that it has to do with. Shapes are left to be set.
std::vector<FusedCase> cases() {
  std::vector<FusedCase> all = {
      {{}, kNone, kRelu, true, true, 0},      {{}, kNone, kRelu, false, false, 0.5},
      {{}, kLeaky, kSilu, true, false, 0.25}, {{}, kNone, kLeaky, true, true, 0.25},
      {{}, kGelu, kNone, false, false, 0},    {{}, kNone, kNone, true, false, 0.9},
  };
  all.push_back(all[3]);
  all.back().parameters = false;
  all.push_back(all[0]);
  all.back().wants_dx = false;
  return all;
}

FusedCase by(const GridWay& way, FusedCase c, const BatchNormShape& shape) {
  c.shape = shape;
  c.tier = way.tier;
  c.limits = way.limits;
  return c;
}

const testing::Test shapes("batch norm and activation by teams: shapes, types, ways, stages", [] {
  const auto schedules = testing::kernel_schedules();
  size_t next = 0;
  for_each_on_chip_type([&](auto type) {
    using T = decltype(type);
    for (const GridWay& way : grid_ways(kVector<T>)) {
      const std::string name = std::string(way.name) + " " + testing::type_name<T>();
      bool used = false;
      int accepted = 0;
      for (const BatchNormShape& shape : kGridShapes) {
        BatchNormProblem problem = {shape, int(sizeof(T)), true, BatchNormPass::train_backward, true};
        const BatchNormPlan plan = plan_batch_norm(problem, way.limits, way.tier);
        used |= plan.possible() && plan.buffers == way.buffers && (plan.splits > 1) == way.splits &&
                (!way.sets || grid_set(plan.splits, shape.rows) > 1);
        if (!plan.possible()) continue;
        // Under a sanitizer one shape says as much as another of its kind.
        const size_t step = testing::flavour == testing::Flavour::plain ? 1 : 3;
        const auto all = cases();
        for (size_t i = size_t(accepted) % step; i < all.size(); i += step)
          check<T>(by(way, all[i], shape), schedules[next++ % schedules.size()]);
        ++accepted;
      }
      expect(used, name + ": used");
      testing::note(name + ": " + std::to_string(accepted) + " shapes of " + std::to_string(std::size(kGridShapes)));
    }
  });
});

// f(way, shape, what) for shapes of 2048 vectors a group in either layout; blocks alone can do one of them.
template <class T, class F>
void for_each_way(F&& f) {
  for (const GridWay& way : grid_ways(kVector<T>))
    for (const bool rows : {false, true}) {
      const BatchNormShape shape = kGridShapes[sizeof(T) == 4 ? (rows ? 13 : 12) : (rows ? 15 : 14)];
      const BatchNormProblem problem = {shape, int(sizeof(T)), true, BatchNormPass::train_backward, true};
      const std::string what = std::string(way.name) + " " + testing::type_name<T>() + " " + describe(shape);
      const bool possible = plan_batch_norm(problem, way.limits, way.tier).possible();
      if (expect(possible || (!way.splits && !rows), what) && possible) f(way, shape, what);
    }
}

const testing::Test schedules("batch norm and activation by teams: the same bits under every schedule", [] {
  for_each_way<float>([](const GridWay& way, const BatchNormShape& shape, const std::string& what) {
    const FusedCase c = by(way, {{}, kLeaky, kRelu, true, true, 0.25}, shape);
    FusedRun<float> first(c);
    first.run({});
    for (const Schedule& schedule : testing::kernel_schedules()) {
      FusedRun<float> r(c);
      r.run(schedule);
      const auto same = [](const auto& a, const auto& b) { return std::equal(a.begin(), a.end(), b.begin()); };
      expect(same(first.y, r.y) && same(first.dx, r.dx) && same(first.dresidual, r.dresidual) &&
                 same(first.gate, r.gate) && same(first.dweight, r.dweight) && same(first.dbias, r.dbias),
             what + " under " + to_string(schedule));
    }
  });
});

// y is positive exactly where the gradient comes through: forward and backward must not differ by a single bit of z.
const testing::Test agreement("batch norm and activation by teams: gates are those of forward", [] {
  for_each_way<float>([](const GridWay& way, const BatchNormShape& shape, const std::string& what) {
    for (const bool saves_gate : {false, true}) {
      FusedRun<float> r(by(way, {{}, kNone, kRelu, true, saves_gate, 0}, shape));
      r.run({});
      // Residuals that all but cancel what they are added to.
      for (size_t j = 0; j < r.y.size(); ++j) r.residual[j] = r.y[j] > 0 ? r.residual[j] - r.y[j] : r.residual[j];
      std::fill(r.dy.begin(), r.dy.end(), 1.0f);
      r.run({});
      for (size_t j = 0; j < r.y.size(); ++j)
        if (!expect_equal(r.dresidual[j], r.y[j] > 0 ? 1.0f : 0.0f, what)) return;
    }
  });
});

// Each tensor once, as the plan promises. What shared memory does not keep goes through L2: x and the gradient of z,
// which dx holds until then.
const testing::Test traffic("batch norm and activation by teams: move what the plan promises", [] {
  const auto moved = [](auto type, const GridWay& way, const BatchNormShape& shape, bool residual, bool saves_gate) {
    using T = decltype(type);
    const FusedCase c = by(way, {{}, kNone, kRelu, residual, saves_gate, 0.5}, shape);
    FusedRun<T> r(c);
    const std::string what = std::string(way.name) + " " + describe(testing::type_name<T>(), c);
    r.run({}, true);
    const double bytes = double(r.x.size() * sizeof(T)), gates = c.has_gate() ? double(r.x.size()) / 8 : 0;
    const auto add_up = [&](const host_executor::Result& result, const BatchNormPlan& plan, const char* kernel,
                            const std::map<std::string, double>& loads, const std::map<std::string, double>& stores,
                            double apart) {
      const auto counts = result.counts_of(kernel);
      expect_equal(counts.launches, 1u, what + " launches");
      expect_equal(result.counts.size(), size_t(1), what + " kernels");
      double sum = 0;
      const auto expect_bytes = [&](const auto& traffic, const auto& expected, const char* verb) {
        for (const auto& [name, right] : expected) {
          const auto found = traffic.find(name);
          const double got = found == traffic.end() ? 0 : double(found->second.bytes);
          expect_equal(got, right, what + verb + name);
          sum += got;
        }
      };
      expect_bytes(counts.load_of, loads, " loads of ");
      expect_bytes(counts.store_of, stores, " stores of ");
      expect_equal(sum, plan.bytes_per_element(sizeof(T)) * double(r.x.size()) + apart, what + " bytes in all");
    };
    const BatchNormPlan &forward = r.forward_plan, &backward = r.backward_plan;
    const double left = bytes * forward.reread, rest = bytes * backward.reread;
    add_up(r.forward, forward, "grid_train", {{"x", bytes + left}, {"residual", residual ? bytes : 0}},
           {{"y", bytes}, {"gate", gates}}, left);
    // Vectors of four elements: the byte is read for both that share it.
    const double readers = 8.0 / grid_vector(sizeof(T), shape.rows, true, true);
    add_up(r.backward, backward, "grid_backward",
           {{"x", bytes + rest},
            {"dy", bytes},
            {"dx", rest},
            {"residual", residual && !c.has_gate() ? bytes : 0},
            {"gate", readers * gates}},
           {{"dx", bytes + rest}, {"dresidual", residual ? bytes : 0}}, 3 * rest + (readers - 1) * gates);
  };
  for_each_on_chip_type([&](auto type) {
    if (testing::flavour != testing::Flavour::plain && sizeof(type) == 2) return;  // sanitizers say the same of all
    for_each_way<decltype(type)>([&](const GridWay& way, const BatchNormShape& shape, const std::string&) {
      moved(type, way, shape, true, true);
      moved(type, way, shape, true, false);
      moved(type, way, shape, false, false);
    });
  });
});

}  // namespace
}  // namespace fastreg
