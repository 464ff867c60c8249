// What the tests of batch norm with an epilogue share: a case, run by the kernels and by plain loops.
#pragma once

#include "batch_norm_checks.h"
#include "kernels/batch_norm/epilogue.h"

namespace fastreg {

constexpr RandomState kRandomState = {0xFEDCBA9876543210ull, 0x300000000ull + 20};

struct FusedCase {
  BatchNormShape shape;
  Activation pre_act = {}, act = {};
  bool residual = false, saves_gate = false;
  double p = 0;
  bool training = true;
  bool parameters = true;  // weight and bias are there, and their gradients wanted
  bool wants_dx = true;
  bool one_slope = false;  // of prelu
  size_t offset = 0;       // of the tensors, in elements: 1 rules 16-byte accesses out
  Tier tier = Tier::streamed;
  DeviceLimits limits = {};

  bool has_gate() const { return saves_gate && residual && is_gated(act.kind); }
};

inline std::string describe(const char* type, const FusedCase& c) {
  const auto name = [](const Activation& a) { return std::string(kActivationNames[size_t(a.kind)]); };
  return std::string(type) + " " + describe(c.shape) + " " + name(c.pre_act) + " " + tier_name(c.tier) + " " +
         name(c.act) + (c.residual ? " residual" : "") + (c.has_gate() ? " gate" : "") + " p=" + std::to_string(c.p) +
         (c.one_slope ? " one slope" : "") + (c.training ? "" : " eval") + (c.parameters ? "" : " no parameters") +
         (c.wants_dx ? "" : " no dx") + (c.offset ? " misaligned" : "");
}

inline bool is_kept(size_t j, double p) {
  return p == 0 || keep_bits(j / 8, kRandomState, drop_threshold(p)) >> (j % 8) & 1;
}

// The case's tensors, and what the kernels make of them.
template <class T>
struct FusedRun {
  using A = compute_t<T>;
  using P = A;  // of parameters and running statistics

  FusedCase c;
  Problem p;
  Doubles residual_values;
  Buffer<T> x, dy, residual, y, dx, dresidual;
  Buffer<P> weight, bias, dweight, dbias, running_mean, running_var, slopes, dslopes;
  Buffer<A> stats, coefficients;
  Buffer<unsigned char> gate;
  Buffer<int64_t> state, used;
  BatchNormProblem problem;
  BatchNormPlan forward_plan, backward_plan;
  host_executor::Result forward, backward;

  explicit FusedRun(const FusedCase& c)
      : c(c),
        p(problem_of(c.shape, 0.5, 1.0)),
        residual_values(noise(p.x.size())),
        x(rounded<T>(p.x), "x", c.offset),
        dy(rounded<T>(p.dy), "dy", c.offset),
        residual(rounded<T>(residual_values), "residual", c.offset),
        y(p.x.size(), "y", c.offset),
        dx(p.x.size(), "dx", c.offset),
        dresidual(p.x.size(), "dresidual", c.offset),
        weight(rounded<P>(p.weight), "weight"),
        bias(rounded<P>(p.bias), "bias"),
        dweight(p.weight.size(), "dweight"),
        dbias(p.weight.size(), "dbias"),
        running_mean(rounded<P>(p.running_mean), "running_mean"),
        running_var(rounded<P>(p.running_var), "running_var"),
        slopes(slope_values(c), "slopes"),
        dslopes(p.weight.size(), "dslopes"),
        stats(3 * p.weight.size(), "stats"),
        coefficients(2 * p.weight.size(), "coefficients"),
        gate(size_t(gate_bytes(int64_t(p.x.size()))), "gate"),
        state(std::vector<int64_t>{int64_t(kRandomState.seed), int64_t(kRandomState.offset)}, "state"),
        used(2, "used") {
    if (!c.parameters) {
      std::fill(p.weight.begin(), p.weight.end(), 1.0);
      std::fill(p.bias.begin(), p.bias.end(), 0.0);
    }
    problem = {c.shape, int(sizeof(T)), c.offset == 0, c.training ? BatchNormPass::train : BatchNormPass::eval, true};
    problem.epilogue = {c.residual, c.has_gate(), false, is_weighted(c.act.kind)};
    forward_plan = plan_batch_norm(problem, c.limits, c.tier);
    problem.pass = c.training ? BatchNormPass::train_backward : BatchNormPass::eval_backward;
    problem.epilogue = {c.residual && !c.has_gate(), c.has_gate(), c.residual, is_weighted(c.act.kind)};
    backward_plan = plan_batch_norm(problem, c.limits, c.tier);
  }
  bool possible() const { return forward_plan.possible() && backward_plan.possible(); }

  static Doubles noise(size_t count) {
    Noise noise;
    Doubles values;
    for (size_t i = 0; i < count + 5; ++i) values.push_back(noise.next());
    values.erase(values.begin(), values.begin() + 5);  // not the noise that x is made of
    return values;
  }

  static std::vector<P> slope_values(const FusedCase& c) {
    std::vector<P> values;
    for (int64_t k = 0; k < (c.one_slope ? 1 : c.shape.channels); ++k) values.push_back(P(0.75 - 0.25 * double(k % 7)));
    return values;
  }
  // act's parameter at element j.
  double parameter_of(size_t j) const {
    if (!is_weighted(c.act.kind)) return c.act.parameter;
    return c.one_slope ? slopes[0] : slopes[channel_of(c.shape, j)];
  }

  ChannelValues values(Buffer<P>& buffer) { return {buffer.data(), std::is_same_v<P, float>}; }
  ChannelValues parameter(Buffer<P>& buffer) { return c.parameters ? values(buffer) : ChannelValues{}; }
  ChannelStatistics statistics() {
    ChannelStatistics s;
    s.eps = p.eps;
    if (c.training) {
      s.stats = stats.data();
    } else {
      s.running_mean = values(running_mean);
      s.running_var = values(running_var);
    }
    return s;
  }
  SlopedEpilogue<T> epilogue() {
    SlopedEpilogue<T> e;
    e.set_activations(c.pre_act, c.act);
    if (is_weighted(c.act.kind)) {
      e.slopes = values(slopes);
      e.one_slope = c.one_slope;
    }
    if (c.has_gate()) e.gate = gate.data();
    if (c.p > 0) {
      DropoutParameters dropout;
      dropout.threshold = drop_threshold(c.p);
      dropout.transform.scale = keep_scale(c.p);
      dropout.state.seed_pointer = state.data();
      dropout.state.offset_pointer = state.data() + 1;
      e.set_dropout(dropout);
    }
    return e;
  }

  void run(const Schedule& schedule, bool count = false) {
    const std::string what = describe(testing::type_name<T>(), c);
    const Device device = testing::virtual_device();
    const BatchNormShape& shape = c.shape;
    SlopedEpilogue<T> e = epilogue();
    if (c.residual) e.residual = residual.data();
    if (c.p > 0) e.state.used = used.data();
    e.shares_gates = forward_plan.shares_gates;
    if (e.shares_gates) std::fill(gate.begin(), gate.end(), 0);
    Scratch scratch(batch_norm_workspace(forward_plan, problem, nullptr, device));
    forward = testing::run_clean(schedule, count, what + " forward", [&] {
      return c.training ? launch_batch_norm_train<T>(forward_plan, x.data(), y.data(), shape, parameter(weight),
                                                     parameter(bias), statistics(), {}, scratch.workspace(), device, e)
                        : launch_batch_norm_eval<T>(x.data(), y.data(), shape, parameter(weight), parameter(bias),
                                                    statistics(), device, e);
    });
    // What forward had, and backward needs.
    e = epilogue();
    if (c.residual) e.grad_residual = dresidual.data();
    if (is_weighted(c.act.kind) && c.parameters) e.grad_slopes = values(dslopes);
    if (!c.has_gate()) {
      if (c.residual) e.residual = residual.data();
      e.bias = parameter(bias);
    }
    Scratch other(batch_norm_workspace(backward_plan, problem, nullptr, device));
    backward = testing::run_clean(schedule, count, what + " backward", [&] {
      return launch_batch_norm_backward<T>(backward_plan, dy.data(), x.data(), c.wants_dx ? dx.data() : nullptr, shape,
                                           parameter(weight), statistics(), parameter(dweight), parameter(dbias),
                                           coefficients.data(), other.workspace(), device, e);
    });
  }
};

// Forward and backward against plain loops: false, and nothing done, where the tier refuses.
template <class T>
bool check(const FusedCase& c, const Schedule& schedule) {
  FusedRun<T> r(c);
  if (!r.possible()) return false;
  const std::string what = describe(testing::type_name<T>(), c);
  const size_t elements = r.p.x.size();
  const double scale = keep_scale(c.p);

  Problem of_values = r.p;  // batch norm proper: of pre_act(x), with the gradient of z
  for (double& value : of_values.x) value = activate(c.pre_act.kind, value, c.pre_act.parameter);
  Statistics s;
  if (c.training) {
    s = batch_statistics(of_values);
  } else {
    for (size_t i = 0; i < r.p.weight.size(); ++i) {
      s.centre.push_back(r.p.running_mean[i]);
      s.delta.push_back(0);
      s.var.push_back(r.p.running_var[i]);
    }
  }
  const Doubles n = normalised(of_values, s);
  Doubles y(elements), dz(elements), dslopes(r.p.weight.size());
  for (size_t j = 0; j < elements; ++j) {
    const double z = n[j] + (c.residual ? r.residual_values[j] : 0.0);
    // Where rounding could decide about a kink, no gradient comes in.
    for (const double kink : {-3.0, 0.0, 3.0, 6.0})
      if (std::fabs(z - kink) < 1e-4) r.dy[j] = testing::from_double<T>(r.p.dy[j] = 0);
    const bool kept = is_kept(j, c.p);
    y[j] = kept ? activate(c.act.kind, z, r.parameter_of(j)) * scale : 0.0;
    dz[j] = kept ? gradient(c.act.kind, r.p.dy[j] * scale, z, r.parameter_of(j)) : 0.0;
    if (kept) dslopes[channel_of(c.shape, j)] += slope_gradient(r.p.dy[j] * scale, z);
  }
  r.run(schedule);

  const double amplification = c.training ? 1 + 2 * scale : 4 + 2 * scale;
  expect_close(r.y, y, tolerance<T>(y, amplification), what + " y");
  if (c.p > 0) expect(r.used[0] == r.state[0] && r.used[1] == r.state[1], what + " used state");
  if (c.residual) expect_close(r.dresidual, dz, tolerance<T>(dz, amplification), what + " dresidual");

  of_values.dy = dz;
  rounded<T>(of_values.dy);
  Gradients g = gradients(of_values, s, c.training);
  for (size_t j = 0; j < elements; ++j) g.dx[j] = gradient(c.pre_act.kind, g.dx[j], r.p.x[j], c.pre_act.parameter);
  const double steep = std::max(1.0, largest(g.dx));
  if (c.wants_dx) {
    expect_close(r.dx, g.dx, 2 * tolerance<T>(g.dx, 4 * steep), what + " dx");
  } else {
    expect_equal(r.dx.unwritten(), elements, what + " dx");
  }
  if (c.parameters) {
    // Sums of n terms: rounding of the sum, and of each term to T.
    const double terms = 1 + std::sqrt(double(c.shape.per_channel()));
    const double each = testing::epsilon<T>() * largest(dz) * terms;
    expect_close(r.dweight, g.dweight, 4 * each + tolerance<compute_t<T>>(g.dweight, 4 * terms), what + " dweight");
    if (is_weighted(c.act.kind))
      expect_close(r.dslopes, dslopes, tolerance<compute_t<T>>(dslopes, 8 * terms * amplification), what + " dslopes");
    expect_close(r.dbias, g.dbias, each + tolerance<compute_t<T>>(g.dbias, 4 * terms), what + " dbias");
  }
  return true;
}

}  // namespace fastreg
