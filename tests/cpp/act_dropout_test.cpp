// The kernel of activation and dropout against its definition: the stream's own bits, draws counted by plain division.
#include "kernels/dropout/act_dropout.h"

#include <cmath>
#include <limits>

#include "kernel_testing.h"

namespace fastreg {
namespace {

using host_executor::Buffer;
using host_executor::Schedule;
using testing::expect;
using testing::expect_equal;

constexpr RandomState kState = {0xFEDCBA9876543210ull, 0x300000000ull + 20};

struct Problem {
  int64_t n;
  Activation act = {};
  double p = 0;
  int64_t channels = 0;  // 0: no bias
  bool residual = false, backward = false;
  std::optional<FeatureMap> features = {};
  size_t offset = 0;  // of all pointers, in elements
};

std::string describe(const char* type, const Problem& q) {
  return std::string(type) + " n=" + std::to_string(q.n) + " " + std::string(kActivationNames[size_t(q.act.kind)]) +
         " p=" + std::to_string(q.p) + " channels=" + std::to_string(q.channels) + (q.residual ? " residual" : "") +
         (q.backward ? " backward" : "") +
         (q.features ? " period=" + std::to_string(q.features->period) + " width=" + std::to_string(q.features->width)
                     : "") +
         " offset=" + std::to_string(q.offset);
}

bool is_kept(int64_t j, const Problem& q) {
  if (q.p == 0) return true;
  const int64_t draw = q.features ? j / q.features->period * q.features->width + j % q.features->width : j;
  return keep_bits(uint64_t(draw) / 8, kState, drop_threshold(q.p)) >> (draw % 8) & 1;
}

template <class T>
T value(int64_t i, int64_t salt) {
  return testing::from_double<T>(double((i * 7919 + salt * 104729) % 1009 - 504) / 128.0);
}

template <class T>
void check(const Problem& q, const Schedule& schedule) {
  const auto n = size_t(q.n);
  const std::string what = describe(testing::type_name<T>(), q);
  Buffer<T> x(n, "x", q.offset), other(n, "other", q.offset), out(n, "out", q.offset);
  Buffer<T> bias(size_t(q.channels), "bias", q.offset);
  Buffer<int64_t> used(2, "used");
  for (int64_t i = 0; i < q.n; ++i) {
    x[size_t(i)] = value<T>(i, 1);
    other[size_t(i)] = value<T>(i, 2);
  }
  for (int64_t c = 0; c < q.channels; ++c) bias[size_t(c)] = value<T>(c, 3);
  // What is dropped is 0, also where it is NaN.
  if (q.p > 0 && !q.backward)
    for (size_t i = 0; i < n; i += 5) x[i] = testing::from_double<T>(std::nan(""));

  ActDropoutParameters<T> parameters;
  parameters.act = q.act;
  if (q.channels > 0) {
    parameters.bias = bias.data();
    parameters.channels = q.channels;
  }
  if (q.residual) parameters.residual = other.data();
  parameters.features = q.features;
  if (q.p > 0) {
    parameters.drops = true;
    parameters.dropout.threshold = drop_threshold(q.p);
    parameters.dropout.transform.scale = keep_scale(q.p);
    parameters.dropout.state.seed = kState.seed;
    parameters.dropout.state.offset = kState.offset;
    parameters.dropout.state.used = used.data();
  }
  testing::run_clean(schedule, false, what, [&] {
    const Device device = testing::virtual_device();
    return q.backward ? launch_act_dropout_backward(other.data(), x.data(), out.data(), q.n, parameters, device)
                      : launch_act_dropout(x.data(), out.data(), q.n, parameters, device);
  });

  if (q.p > 0) expect(used[0] == int64_t(kState.seed) && used[1] == int64_t(kState.offset), what + " used state");
  const double scale = keep_scale(q.p);
  expect(true, what);
  for (int64_t j = 0; j < q.n; ++j) {
    const double o = testing::to_double(other[size_t(j)]);
    double z = testing::to_double(x[size_t(j)]);
    if (q.channels > 0) z += testing::to_double(bias[size_t(j % q.channels)]);
    const bool kept = is_kept(j, q);
    double expected = q.backward
                          ? (kept ? gradient(q.act.kind, o * scale, z, q.act.parameter) : 0.0)
                          : (kept ? activate(q.act.kind, z, q.act.parameter) * scale : 0.0) + (q.residual ? o : 0.0);
    const double got = testing::to_double(out[size_t(j)]);
    // One rounding to T, and some of the arithmetic's before.
    const double error =
        testing::epsilon<T>() / 2 * std::fabs(expected) +
        32 * testing::epsilon<compute_t<T>>() * scale * (1 + (std::isnan(z) ? 0 : std::fabs(z))) * (1 + std::fabs(o));
    const bool right = std::isnan(expected) ? std::isnan(got) : std::fabs(got - expected) <= error;
    if (right) continue;
    expect(false, what + " [" + std::to_string(j) + "]: got " + std::to_string(got) + ", expected " +
                      std::to_string(expected));
    return;
  }
}

const testing::Test activations("activation and dropout: activations", [] {
  for (int kind = 0; kind < kUnweightedKinds; ++kind)
    for (const bool backward : {false, true}) {
      Problem q = {263, {ActivationKind(kind), 0.25}, 0.25, 24};
      q.backward = backward;
      testing::for_each_type([&](auto type) { check<decltype(type)>(q, {}); });
    }
});

// Less than a vector, a part of a block, more than the grid at once; biases that vectors divide and others; draws of
// elements and of features in either layout.
const testing::Test shapes("activation and dropout: sizes, bias, residual, features, alignment", [] {
  const auto schedules = testing::kernel_schedules();
  size_t next = 0;
  const Activation relu = {ActivationKind::relu}, gelu = {ActivationKind::gelu};
  for (const int64_t n : {1, 7, 96, 1000, 70001})
    for (const int64_t channels : {0, 1, 8, 13})
      for (const bool backward : {false, true})
        for (const size_t offset : {size_t(0), size_t(1)}) {
          if (n > 1000 && (channels == 1 || offset > 0)) continue;
          Problem q = {n, channels % 2 ? relu : gelu, 0.25, channels, !backward && channels < 8, backward};
          q.offset = offset;
          std::vector<Problem> all = {q};
          q.features = FeatureMap{6, 1};
          all.push_back(q);
          q.features = FeatureMap{20, 5};
          q.p = 0.5;
          all.push_back(q);
          q.features = {};
          q.p = 0;
          all.push_back(q);
          q.p = 1;
          all.push_back(q);
          for (const Problem& one : all)
            testing::for_each_type(
                [&](auto type) { check<decltype(type)>(one, schedules[next++ % schedules.size()]); });
        }
});

const testing::Test traffic("activation and dropout: moves what its header promises", [] {
  testing::for_each_type([&](auto type) {
    using T = decltype(type);
    const size_t n = 64 * 1024;
    for (const bool residual : {false, true}) {
      Buffer<T> x(std::vector<T>(n), "x"), r(std::vector<T>(n), "r"), y(n, "y");
      ActDropoutParameters<T> parameters;
      parameters.act = {ActivationKind::silu};
      parameters.drops = true;
      parameters.dropout.threshold = drop_threshold(0.5);
      if (residual) parameters.residual = r.data();
      const auto counts =
          testing::run_clean({}, true, "traffic", [&] {
            return launch_act_dropout(x.data(), y.data(), int64_t(n), parameters, testing::virtual_device());
          }).counts_of("act_dropout");
      const std::string what = testing::type_name<T>();
      expect_equal(counts.launches, 1u, what + " launches");
      expect_equal(counts.load_of.at("x").bytes, n * sizeof(T), what + " loads");
      expect_equal(counts.store_of.at("y").bytes, n * sizeof(T), what + " stores");
      expect_equal(counts.store_of.at("y").sectors, n * sizeof(T) / 32, what + " sectors");
      expect_equal(counts.load_of.count("r"), size_t(residual), what + " residual");
    }
  });
});

}  // namespace
}  // namespace fastreg
