// What the tests of the batch norm kernels share: problems, and a check of one tier against the plain loops of
// batch_norm_reference.h.
#pragma once

#include <algorithm>
#include <cmath>

#include "batch_norm_reference.h"
#include "kernel_testing.h"
#include "kernels/batch_norm/tiers.h"

namespace fastreg {

using host_executor::Buffer;
using host_executor::Schedule;
using testing::expect;
using testing::expect_equal;
using testing::to_double;

// Values without structure, in [-1, 1).
class Noise {
 public:
  double next() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return double(int64_t(state_) >> 11) * 0x1p-52;
  }

 private:
  uint64_t state_ = 12345;
};

// The values as a T holds them; the doubles become equal to them.
template <class T>
std::vector<T> rounded(Doubles& values) {
  std::vector<T> all;
  for (double& value : values) {
    all.push_back(testing::from_double<T>(value));
    value = to_double(all.back());
  }
  return all;
}

inline double largest(const Doubles& values) {
  double most = 0;
  for (const double v : values) most = std::max(most, std::fabs(v));
  return most;
}

// |got - expected| <= tolerance for all; negated, so that NaN fails.
template <class T>
void expect_close(const Buffer<T>& got, const Doubles& expected, double tolerance, const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::fabs(to_double(got[i]) - expected[i]);
    if (!(error <= tolerance)) {
      std::ostringstream message;
      message << what << "[" << i << "] is " << to_double(got[i]) << ", expected " << expected[i] << ": off by "
              << error << ", tolerance " << tolerance;
      expect(false, message.str());
      return;
    }
  }
  expect(true, what);
}

// The design's bound: 4 ulp of the largest result and 1e-6. In fp64 the second term is rounding, too.
template <class T>
double tolerance(const Doubles& expected, double terms = 1) {
  const double ulp = testing::epsilon<T>() * largest(expected);
  const double arithmetic = sizeof(T) == 8 ? 1e-14 : 1e-6;
  return 4 * ulp + arithmetic * std::max(1.0, largest(expected)) * terms;
}

inline Problem problem_of(const BatchNormShape& shape, double mean, double deviation) {
  Problem p;
  p.shape = shape;
  Noise noise;
  const auto elements = size_t(shape.channels * shape.per_channel());
  for (size_t i = 0; i < elements; ++i) {
    p.x.push_back(mean + deviation * noise.next());
    p.dy.push_back(noise.next() + 0.25);
  }
  for (int64_t c = 0; c < shape.channels; ++c) {
    p.weight.push_back(1.5 * noise.next());
    p.bias.push_back(noise.next());
    p.running_mean.push_back(noise.next());
    p.running_var.push_back(1.25 + noise.next());
  }
  return p;
}

struct Scratch {
  explicit Scratch(const WorkspaceSize& size)
      : partials(size_t(size.partial_bytes), "partials"),
        tickets(std::vector<unsigned>(size_t(size.tickets), 0u), "tickets") {}
  Workspace workspace() { return {partials.data(), tickets.data()}; }
  Buffer<char> partials;
  Buffer<unsigned> tickets;
};

// What differs between runs of one shape.
struct Variant {
  size_t offset = 0;          // of the tensors, in elements: 1 rules 16-byte accesses out
  bool parameters = true;     // weight and bias are there
  bool float_values = false;  // parameters and running statistics in fp32, whatever the input is
  bool cumulative = false;
  double mean = 0.5, deviation = 1.0;
  Tier tier = Tier::streamed;
  DeviceLimits limits = {};
};

inline std::string describe(const char* type, const BatchNormShape& shape, const Variant& v) {
  return std::string(type) + " " + describe(shape) + (v.offset ? " misaligned" : "") +
         (v.parameters ? "" : " no parameters") + (v.float_values ? " fp32 parameters" : "") +
         (v.cumulative ? " cumulative" : "") + " mean " + std::to_string(v.mean) + " " + tier_name(v.tier);
}

// Forward and backward against the reference, as planned for the variant's tier: false, and nothing done, where that
// refuses. T: the input's type, P: that of parameters and running statistics.
template <class T, class P>
bool check_as(const BatchNormShape& shape, const Variant& v, const Schedule& schedule) {
  using A = compute_t<T>;
  const std::string what = describe(testing::type_name<T>(), shape, v);
  const Device device = testing::virtual_device();
  const bool is_float = std::is_same<P, float>::value;
  const auto channels = size_t(shape.channels);
  BatchNormProblem forward_problem = {shape, int(sizeof(T)), v.offset == 0, BatchNormPass::train};
  BatchNormProblem backward_problem = forward_problem;
  backward_problem.pass = BatchNormPass::train_backward;
  const BatchNormPlan forward_plan = plan_batch_norm(forward_problem, v.limits, v.tier);
  const BatchNormPlan backward_plan = plan_batch_norm(backward_problem, v.limits, v.tier);
  if (!forward_plan.possible() || !backward_plan.possible()) return false;
  Problem p = problem_of(shape, v.mean, v.deviation);

  Buffer<T> x(rounded<T>(p.x), "x", v.offset), dy(rounded<T>(p.dy), "dy", v.offset);
  Buffer<P> weight(rounded<P>(p.weight), "weight"), bias(rounded<P>(p.bias), "bias");
  Buffer<P> running_mean(rounded<P>(p.running_mean), "running_mean");
  Buffer<P> running_var(rounded<P>(p.running_var), "running_var");
  if (!v.parameters) {
    p.weight.assign(channels, 1.0);
    p.bias.assign(channels, 0.0);
  }
  Buffer<T> y(p.x.size(), "y", v.offset), dx(p.x.size(), "dx", v.offset);
  Buffer<A> stats(3 * channels, "stats"), coefficients(2 * channels, "coefficients");
  Buffer<P> dweight(channels, "dweight"), dbias(channels, "dbias");
  Buffer<int64_t> batches(std::vector<int64_t>{3}, "num_batches_tracked");
  const ChannelValues none;
  const ChannelValues weight_values = v.parameters ? ChannelValues{weight.data(), is_float} : none;
  const ChannelValues bias_values = v.parameters ? ChannelValues{bias.data(), is_float} : none;

  // Evaluation first: it uses the running statistics that training changes.
  const Statistics running = {{p.running_mean.begin(), p.running_mean.end()},
                              std::vector<Long>(channels),
                              {p.running_var.begin(), p.running_var.end()}};
  ChannelStatistics evaluation;
  evaluation.running_mean = {running_mean.data(), is_float};
  evaluation.running_var = {running_var.data(), is_float};
  evaluation.eps = p.eps;
  Doubles expected;
  const auto backward = [&](const ChannelStatistics& statistics, const Statistics& by, bool training) {
    const std::string name = what + (training ? " train" : " eval");
    const BatchNormPlan plan = training ? backward_plan : BatchNormPlan{};
    Scratch scratch(batch_norm_workspace(plan, backward_problem, nullptr, device));
    dx.poison();
    testing::run_clean(schedule, false, name + " backward", [&] {
      return launch_batch_norm_backward<T>(plan, dy.data(), x.data(), dx.data(), shape, weight_values, statistics,
                                           {dweight.data(), is_float}, {dbias.data(), is_float}, coefficients.data(),
                                           scratch.workspace(), device);
    });
    const Gradients g = gradients(p, by, training);
    const double amplification = std::max(1.0, largest(g.dx));
    expect_close(dx, g.dx, 2 * tolerance<T>(g.dx, amplification), name + " dx");
    // Sums of n terms: fp32 rounding grows with them.
    const double terms = 1 + std::sqrt(double(shape.per_channel()));
    const double parameter_ulp = testing::epsilon<P>() * largest(g.dweight);
    expect_close(dweight, g.dweight, parameter_ulp + tolerance<A>(g.dweight, terms), name + " dweight");
    expect_close(dbias, g.dbias,
                 parameter_ulp + testing::epsilon<P>() * largest(g.dbias) + tolerance<A>(g.dbias, terms),
                 name + " dbias");
  };
  if (v.tier == Tier::streamed) {
    testing::run_clean(schedule, false, what + " eval", [&] {
      return launch_batch_norm_eval<T>(x.data(), y.data(), shape, weight_values, bias_values, evaluation, device);
    });
    expected = normalised(p, running);
    expect_close(y, expected, tolerance<T>(expected, 1 + largest(p.x)), what + " eval y");
    backward(evaluation, running, false);
  }

  const Statistics batch = batch_statistics(p);
  {
    y.poison();
    ChannelStatistics statistics;
    statistics.stats = stats.data();
    statistics.eps = p.eps;
    RunningUpdate update;
    update.mean = evaluation.running_mean;
    update.var = evaluation.running_var;
    update.num_batches_tracked = batches.data();
    update.cumulative = v.cumulative;
    update.factor = 0.1;
    Scratch scratch(batch_norm_workspace(forward_plan, forward_problem, &update, device));
    testing::run_clean(schedule, false, what + " train", [&] {
      return launch_batch_norm_train<T>(forward_plan, x.data(), y.data(), shape, weight_values, bias_values, statistics,
                                        update, scratch.workspace(), device);
    });
    expected = normalised(p, batch);
    expect_close(y, expected, tolerance<T>(expected), what + " train y");
    expect_equal(batches[0], 4, what + " num_batches_tracked");

    const double factor = v.cumulative ? 0.25 : 0.1, n = double(shape.per_channel());
    Doubles new_mean, new_var;
    for (size_t c = 0; c < channels; ++c) {
      new_mean.push_back(double((1 - factor) * p.running_mean[c] + factor * (batch.centre[c] + batch.delta[c])));
      new_var.push_back(double((1 - factor) * p.running_var[c] + factor * batch.var[c] * n / (n - 1)));
    }
    expect_close(running_mean, new_mean, 4 * testing::epsilon<P>() * largest(new_mean) + 1e-6 * testing::epsilon<P>(),
                 what + " running_mean");
    expect_close(running_var, new_var, 4 * testing::epsilon<P>() * largest(new_var), what + " running_var");
    backward(statistics, batch, true);
  }
  return true;
}

template <class T>
bool check(const BatchNormShape& shape, const Variant& v, const Schedule& schedule) {
  return v.float_values ? check_as<T, float>(shape, v, schedule) : check_as<T, T>(shape, v, schedule);
}

}  // namespace fastreg
