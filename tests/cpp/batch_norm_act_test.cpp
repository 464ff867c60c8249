// Batch norm with an epilogue, streamed and in slabs.
#include "batch_norm_act_checks.h"
#include "batch_norm_slab_ways.h"

namespace fastreg {
namespace {

Activation with_default(int kind) {
  const auto k = ActivationKind(kind);
  return {k, k == ActivationKind::leaky_relu ? 0.1 : k == ActivationKind::elu ? 0.7 : 0.0};
}

const BatchNormShape kShapes[] = {{5, 3, 7, false},    {3, 4, 16, false}, {4, 1, 900, false},
                                  {2, 3, 1024, false}, {33, 5, 1, true},  {6, 16, 9, true},
                                  {300, 8, 4, true},   {2, 264, 2, true}, {7, 12, 5, true}};

// Each activation after and before; with and without residual, gate and dropout, in training and evaluation.
const testing::Test activations("batch norm and activation: activations", [] {
  for (int kind = 0; kind < kActivationKinds; ++kind)
    for (const bool before : {false, true}) {
      if (before && is_weighted(ActivationKind(kind))) continue;  // not by one kernel
      FusedCase c = {{3, 4, 16, false}};
      (before ? c.pre_act : c.act) = with_default(kind);
      for (const BatchNormShape& shape : {kShapes[0], kShapes[1], kShapes[5]})
        for (const bool residual : {false, true}) {
          c.shape = shape;
          c.residual = residual;
          testing::for_each_type([&](auto type) { check<decltype(type)>(c, {}); });
        }
    }
});

// Under a sanitizer some of them say nearly as much as all.
std::vector<FusedCase> combinations() {
  const Activation relu = {ActivationKind::relu}, gelu = {ActivationKind::gelu_tanh},
                   leaky = {ActivationKind::leaky_relu, 0.1}, silu = {ActivationKind::silu}, none = {},
                   prelu = {ActivationKind::prelu};
  const BatchNormShape shape = {3, 4, 16, false};
  std::vector<FusedCase> all = {
      {shape, none, relu, false, false, 0.5},   {shape, none, relu, true, true, 0},
      {shape, none, leaky, true, true, 0.25},   {shape, leaky, silu, true, false, 0.25},
      {shape, none, none, true, false, 0.9},    {shape, gelu, none, false, false, 1.0},
      {shape, none, prelu, false, false, 0.25}, {shape, leaky, prelu, true, false, 0},
  };
  all.back().one_slope = true;
  for (size_t i = 0, count = all.size(); i < count; ++i) {
    FusedCase evaluation = all[i];
    evaluation.training = false;
    all.push_back(evaluation);
    evaluation.parameters = false;
    all.push_back(evaluation);
  }
  for (size_t i = 0, count = all.size(); i < count; ++i) {
    FusedCase misaligned = all[i], sums = all[i];
    misaligned.offset = 1;
    all.push_back(misaligned);
    sums.wants_dx = false;
    all.push_back(sums);
  }
  if (testing::flavour == testing::Flavour::plain) return all;
  std::vector<FusedCase> some;
  for (size_t i = 0; i < all.size(); i += 5) some.push_back(all[i]);
  return some;
}

const testing::Test shapes("batch norm and activation: shapes, types, residual, gate, dropout", [] {
  const auto schedules = testing::kernel_schedules();
  size_t next = 0;
  for (FusedCase c : combinations())
    for (const BatchNormShape& shape : kShapes) {
      c.shape = shape;
      testing::for_each_type([&](auto type) { check<decltype(type)>(c, schedules[next++ % schedules.size()]); });
    }
});

// Of one and of several channels an item.
const BatchNormShape kSlabShapes[] = {
    {16, 5, 64, false}, {17, 16, 9, false}, {3, 20, 196, false}, {10, 24, 49, false}, {3, 5, 40, false}};

const testing::Test slabs("batch norm and activation: slabs", [] {
  const auto schedules = testing::kernel_schedules();
  size_t next = 0;
  for (const Way& way : ways()) {
    int accepted = 0, refused = 0;
    for (FusedCase c : combinations())
      for (const BatchNormShape& shape : kSlabShapes) {
        if (!c.training || c.offset > 0 || (!c.wants_dx && shape.size != 64)) continue;
        c.shape = shape;
        c.tier = way.tier;
        c.limits = way.limits;
        testing::for_each_type([&](auto type) {
          ++(check<decltype(type)>(c, schedules[next++ % schedules.size()]) ? accepted : refused);
        });
      }
    expect(accepted > 10, std::string(way.name) + ": accepted");
    testing::note(std::string(way.name) + ": " + std::to_string(accepted) + " accepted, " + std::to_string(refused) +
                  " refused");
  }
});

// In fp32, y is positive exactly where z is: forward and backward must not differ by a single bit of z.
const testing::Test agreement("batch norm and activation: gates are those of forward", [] {
  for (const BatchNormShape& shape : {BatchNormShape{16, 2, 1024, false}, BatchNormShape{512, 64, 1, true},
                                      BatchNormShape{16, 3, 196, false}, BatchNormShape{128, 12, 1, true}})
    for (const bool saves_gate : {false, true})
      for (const ActivationKind pre_act : {ActivationKind::identity, ActivationKind::leaky_relu}) {
        FusedCase c = {shape, {pre_act, 0.3}, {ActivationKind::relu}, true, saves_gate};
        FusedRun<float> r(c);
        // Residuals that all but cancel what they are added to.
        r.run({});
        for (size_t j = 0; j < r.y.size(); ++j) r.residual[j] = r.y[j] > 0 ? r.residual[j] - r.y[j] : r.residual[j];
        std::fill(r.dy.begin(), r.dy.end(), 1.0f);
        r.run({});
        size_t open = 0, shut = 0;
        for (size_t j = 0; j < r.y.size(); ++j) {
          const bool is_open = r.y[j] > 0;
          ++(is_open ? open : shut);
          if (!expect_equal(r.dresidual[j], is_open ? 1.0f : 0.0f, describe("fp32", c))) return;
          if (saves_gate && !expect_equal(r.gate[j / 8] >> j % 8 & 1, int(is_open), describe("fp32", c) + " bit"))
            return;
        }
        expect(open > 100 && shut > 100, describe("fp32", c) + ": both");
      }
});

const testing::Test special("batch norm and activation: what is dropped is 0, also where it is NaN", [] {
  for (const BatchNormShape& shape : {BatchNormShape{2, 3, 64, false}, BatchNormShape{64, 8, 1, true}}) {
    FusedCase c = {shape, {}, {ActivationKind::relu}, true, true, 0.5};
    FusedRun<half> r(c);
    for (size_t j = 0; j < r.residual.size(); j += 3) r.residual[j] = testing::from_double<half>(std::nan(""));
    r.run({});
    for (size_t j = 0; j < r.y.size(); ++j) {
      const double y = to_double(r.y[j]);
      const bool right = !is_kept(j, c.p) ? y == 0 : j % 3 == 0 ? std::isnan(y) : y >= 0;
      if (!expect(right, describe("fp16", c) + " " + std::to_string(j))) return;
    }
  }
});

const testing::Test repeatable("batch norm and activation: repeatable bit for bit", [] {
  for (const BatchNormShape& shape : {BatchNormShape{4, 1, 900, false}, BatchNormShape{300, 8, 4, true}})
    for (const ActivationKind act : {ActivationKind::relu, ActivationKind::prelu}) {
      const FusedCase c = {shape, {ActivationKind::leaky_relu, 0.1}, {act}, true, true, 0.25};
      FusedRun<float> first(c);
      first.run({});
      // Gates of what has any; the buffer's end is not written.
      const size_t gate_bytes = c.has_gate() ? (first.x.size() + 7) / 8 : 0;
      unsigned char garbage = 0;
      for (const Schedule& schedule : testing::kernel_schedules()) {
        FusedRun<float> r(c);
        std::fill(r.gate.begin(), r.gate.end(), ++garbage);
        r.run(schedule);
        const auto same = [](const auto& a, const auto& b) { return std::equal(a.begin(), a.end(), b.begin()); };
        const bool same_gates = std::equal(r.gate.begin(), r.gate.begin() + gate_bytes, first.gate.begin());
        expect(same(first.y, r.y) && same(first.dx, r.dx) && same(first.dresidual, r.dresidual) && same_gates &&
                   same(first.dweight, r.dweight) && (!is_weighted(act) || same(first.dslopes, r.dslopes)),
               describe("fp32", c) + " under " + to_string(schedule));
      }
    }
});

// Each tensor once, the residual's gradient and the gates included.
const testing::Test slab_traffic("batch norm and activation: slabs move what their header promises", [] {
  for (const Way& way : ways())
    for (const BatchNormShape& shape : {kSlabShapes[0], BatchNormShape{17, 16, 10, false}})
      for (const bool saves_gate : {false, true}) {
        FusedCase c = {shape, {}, {ActivationKind::relu}, true, saves_gate, 0.5};
        c.tier = way.tier;
        c.limits = way.limits;
        FusedRun<float> r(c);
        const std::string what = std::string(way.name) + " " + describe("fp32", c);
        if (!expect(r.possible(), what)) continue;
        r.run({}, true);
        const uint64_t bytes = r.x.size() * 4;
        const auto forward = r.forward.counts_of("slab_train"), backward = r.backward.counts_of("slab_backward");
        for (const char* name : {"x", "residual"})
          expect_equal(forward.load_of.at(name).bytes, bytes, what + " loads of " + name);
        expect_equal(forward.store_of.at("y").bytes, bytes, what + " stores of y");
        for (const char* name : {"x", "dy"})
          expect_equal(backward.load_of.at(name).bytes, bytes, what + " loads of " + name);
        for (const char* name : {"dx", "dresidual"})
          expect_equal(backward.store_of.at(name).bytes, bytes, what + " stores of " + name);
        if (saves_gate) {
          expect_equal(forward.store_of.at("gate").bytes, bytes / 32, what + " stores of gates");
          expect_equal(forward.atomics, uint64_t(0), what + " atomic operations");
          expect_equal(backward.load_of.at("gate").bytes, bytes / 16,
                       what + " loads of gates, by both who need a byte");
        } else {
          expect_equal(backward.load_of.at("residual").bytes, bytes, what + " loads of the residual");
        }
      }
});

// Besides what batch norm moves: the residual in the pass that writes y, in backward what tells act's derivative in
// both passes; the gradient of the residual once.
const testing::Test traffic("batch norm and activation: move what their header promises", [] {
  testing::for_each_type([&](auto type) {
    using T = decltype(type);
    if (sizeof(T) == 8) return;
    for (const BatchNormShape& shape : {BatchNormShape{8, 2, 1024, false}, BatchNormShape{1024, 64, 1, true}})
      for (const bool saves_gate : {false, true}) {
        const FusedCase c = {shape, {}, {ActivationKind::relu}, true, saves_gate, 0.5};
        const std::string what = describe(testing::type_name<T>(), c);
        FusedRun<T> r(c);
        r.run({}, true);
        const uint64_t bytes = r.x.size() * sizeof(T);
        const auto moved = [&](const host_executor::Result& result, const char* kernel, const char* name, bool stored,
                               uint64_t expected) {
          const auto counts = result.counts_of(kernel);
          const auto& traffic = stored ? counts.store_of : counts.load_of;
          const auto found = traffic.find(name);
          const uint64_t got = found == traffic.end() ? 0 : found->second.bytes;
          expect_equal(got, expected, what + (stored ? " stores of " : " loads of ") + name + " by " + kernel);
        };
        const uint64_t gates = saves_gate ? r.x.size() / 8 : 0, residual = saves_gate ? 0 : bytes;
        moved(r.forward, "moments_kernel", "residual", false, 0);
        moved(r.forward, "normalize_kernel", "x", false, bytes);
        moved(r.forward, "normalize_kernel", "residual", false, bytes);
        moved(r.forward, "normalize_kernel", "y", true, bytes);
        moved(r.forward, "normalize_kernel", "gate", true, gates);
        // Vectors of four elements: the byte is read for both that share it.
        const uint64_t readers = shape.rows || sizeof(T) == 4 ? 2 : 1;
        for (const char* kernel : {"grad_sums_kernel", "grad_input_kernel"}) {
          moved(r.backward, kernel, "dy", false, bytes);
          moved(r.backward, kernel, "x", false, bytes);
          moved(r.backward, kernel, "residual", false, residual);
          moved(r.backward, kernel, "gate", false, readers * gates);
        }
        moved(r.backward, "grad_sums_kernel", "dresidual", true, bytes);
        moved(r.backward, "grad_input_kernel", "dresidual", true, 0);
        moved(r.backward, "grad_input_kernel", "dx", true, bytes);
      }
  });
});

}  // namespace
}  // namespace fastreg
