// The activations against their definitions in long double, and against the derivatives of these.
#include "kernels/common/activation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "testing.h"

namespace fastreg {
namespace {

using testing::expect;
using testing::expect_equal;
using Real = long double;

constexpr int kKinds = kActivationKinds;
constexpr double kParameter = 0.3;

Real sigmoid(Real z) { return 1 / (1 + std::exp(-z)); }

Real defined(ActivationKind kind, Real z, Real parameter) {
  switch (kind) {
    case ActivationKind::identity:
      return z;
    case ActivationKind::relu:
      return std::max(z, Real(0));
    case ActivationKind::relu6:
      return std::min(std::max(z, Real(0)), Real(6));
    case ActivationKind::leaky_relu:
    case ActivationKind::prelu:
      return z > 0 ? z : parameter * z;
    case ActivationKind::elu:
      return z > 0 ? z : parameter * std::expm1(z);
    case ActivationKind::silu:
      return z * sigmoid(z);
    case ActivationKind::mish:
      return z * std::tanh(std::log1p(std::exp(z)));
    case ActivationKind::gelu:
      return z * std::erfc(-z / std::sqrt(Real(2))) / 2;
    case ActivationKind::gelu_tanh:
      return z * sigmoid(2 * std::sqrt(2 / std::acos(Real(-1))) * (z + Real(0.044715) * z * z * z));
    case ActivationKind::hardswish:
      return z * std::min(std::max(z + 3, Real(0)), Real(6)) / 6;
    case ActivationKind::hardsigmoid:
      return std::min(std::max(z + 3, Real(0)), Real(6)) / 6;
    case ActivationKind::sigmoid:
      return sigmoid(z);
    case ActivationKind::tanh:
      return std::tanh(z);
  }
  return z;
}

// By differences of the fourth order: their error is about 1e-14 where the activation is smooth.
Real slope(ActivationKind kind, Real z, Real parameter) {
  const Real h = 1e-4L;
  const auto f = [&](Real x) { return defined(kind, x, parameter); };
  return (8 * (f(z + h) - f(z - h)) - (f(z + 2 * h) - f(z - 2 * h))) / (12 * h);
}

bool near_a_kink(ActivationKind kind, Real z) {
  const bool smooth = !is_gated(kind) && kind != ActivationKind::elu && kind != ActivationKind::hardswish &&
                      kind != ActivationKind::prelu;
  for (const Real kink : {-3, 0, 3, 6})
    if (!smooth && std::abs(z - kink) < 1e-3L) return true;
  return false;
}

std::string describe(int kind, Real z) {
  return std::string(kActivationNames[kind]) + " at " + std::to_string(double(z));
}

// Errors are counted in units of the last place of 1, or of z where that is larger: the derivatives subtract numbers of
// that size.
template <class A>
void check_values(const char* type) {
  const Real epsilon = std::numeric_limits<A>::epsilon();
  for (int k = 0; k < kKinds; ++k) {
    const auto kind = ActivationKind(k);
    Real worst = 0, worst_slope = 0;
    for (int i = -8000; i <= 8000; ++i) {
      const A z = A(i) / A(399.5);  // to 20 on either side
      const A parameter = A(kParameter);
      const Real size = std::max(std::abs(Real(z)), Real(1));
      const Real value = defined(kind, z, parameter);
      const Real error = std::abs(activate(kind, z, parameter) - value) / epsilon;
      worst = std::max(worst, error / size);
      expect(error <= 2 * size, describe(k, z) + ": " + type);
      if (near_a_kink(kind, z)) continue;
      const Real slope_error = std::abs(derivative(kind, z, parameter) - slope(kind, z, parameter));
      worst_slope = std::max(worst_slope, slope_error / epsilon / size);
      expect(slope_error <= 5 * epsilon * size + 1e-13L, describe(k, z) + ": derivative, " + type);
    }
    testing::note(std::string(kActivationNames[k]) + " " + type + ": " + std::to_string(double(worst)) +
                  " units in the last place, derivative " + std::to_string(double(worst_slope)));
  }
}

struct Kink {
  ActivationKind kind;
  double z, derivative;
};

template <class A>
void check_kinks() {
  using Kind = ActivationKind;
  const double p = A(kParameter), sixth = A(1) / A(6);
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<Kink> kinks = {
      {Kind::relu, 0, 0},          {Kind::relu, -0.0, 0},      {Kind::relu, nan, 1},
      {Kind::relu, infinity, 1},   {Kind::relu, -infinity, 0}, {Kind::relu6, 0, 0},
      {Kind::relu6, 6, 0},         {Kind::relu6, nan, 0},      {Kind::relu6, infinity, 0},
      {Kind::leaky_relu, 0, p},    {Kind::leaky_relu, nan, p}, {Kind::leaky_relu, -infinity, p},
      {Kind::elu, 0, p},           {Kind::elu, -infinity, 0},  {Kind::elu, infinity, 1},
      {Kind::hardswish, -3, 0},    {Kind::hardswish, 3, 1},    {Kind::hardswish, infinity, 1},
      {Kind::hardsigmoid, -3, 0},  {Kind::hardsigmoid, 3, 0},  {Kind::hardsigmoid, 0, sixth},
      {Kind::hardsigmoid, nan, 0}, {Kind::prelu, 0, p},        {Kind::prelu, nan, p}};
  for (const Kink& kink : kinks)
    expect_equal(double(derivative(kink.kind, A(kink.z), A(kParameter))), kink.derivative,
                 describe(int(kink.kind), kink.z));
}

template <class A>
void check_special() {
  const A infinity = std::numeric_limits<A>::infinity(), nan = std::numeric_limits<A>::quiet_NaN();
  const A parameter = A(kParameter);
  for (int k = 0; k < kKinds; ++k) {
    const auto kind = ActivationKind(k);
    expect(std::isnan(activate(kind, nan, parameter)), describe(k, nan));
    const bool slopes = kind == ActivationKind::leaky_relu || kind == ActivationKind::prelu;
    if (!is_gated(kind) && !slopes && kind != ActivationKind::identity)
      expect(std::isnan(derivative(kind, nan, parameter)), describe(k, nan) + ": derivative");
    const bool odd = activate(kind, A(0), parameter) == A(0);
    if (odd) expect(std::signbit(activate(kind, A(-0.0), parameter)), describe(k, -0.0) + ": the sign of zero");
    for (const A z : {A(1e5), A(3e30), -A(1e5), -A(3e30)}) {
      const Real value = defined(kind, z, parameter);
      expect(std::abs(activate(kind, z, parameter) - value) <= std::numeric_limits<A>::epsilon() * std::abs(value),
             describe(k, z));
      const Real steep = z > 0 ? 1 : 0;
      const A d = derivative(kind, z, parameter);
      const bool flat = kind == ActivationKind::relu6 || kind == ActivationKind::hardsigmoid ||
                        kind == ActivationKind::sigmoid || kind == ActivationKind::tanh;
      const Real expected = kind == ActivationKind::identity ? 1 : flat ? 0 : slopes && z < A(0) ? parameter : steep;
      expect(std::abs(d - expected) <= 1e-20L, describe(k, z) + ": derivative");
    }
    for (const A z : {infinity, -infinity}) {
      const A value = activate(kind, z, parameter);
      expect(std::isnan(value) || value == activate(kind, z > 0 ? A(3e30) : A(-3e30), parameter) ||
                 (std::isinf(value) && (value > 0) == (z > 0)),
             describe(k, z));
    }
  }
}

const testing::Test values("activations: values and derivatives", [] {
  check_values<float>("fp32");
  check_values<double>("fp64");
});
const testing::Test kinks("activations: derivatives at kinks", [] {
  check_kinks<float>();
  check_kinks<double>();
});
const testing::Test special("activations: NaN, infinities, signed zeros, large numbers", [] {
  check_special<float>();
  check_special<double>();
});

const testing::Test names("activations: names", [] {
  for (int k = 0; k < kKinds; ++k) {
    const auto kind = activation_named(kActivationNames[k]);
    expect(kind && int(*kind) == k, std::string(kActivationNames[k]));
  }
  expect(kActivationNames[int(ActivationKind::prelu)] == "prelu", "the last name");
  expect(!activation_named("Relu") && !activation_named(""), "unknown names");
});

const testing::Test gates("activations: gates tell derivatives", [] {
  for (int k = 0; k < kKinds; ++k) {
    const auto kind = ActivationKind(k);
    for (int i = -400; is_gated(kind) && i <= 400; ++i) {
      const double z = i / 50.0;
      expect_equal(gated_derivative(kind, is_open(kind, z), kParameter), derivative(kind, z, kParameter),
                   describe(k, z));
    }
  }
});

const testing::Test gradients("activations: gradients", [] {
  for (int k = 0; k < kKinds; ++k) {
    const auto kind = ActivationKind(k);
    bool dispatched = false;
    with_kind(kind, [&](auto constant) { dispatched = decltype(constant)::value == kind; });
    expect_equal(dispatched, kind != ActivationKind::identity, describe(k, 0) + ": dispatched");
    for (const double z : {-7.0, -1.0, -0.5, 0.0, 0.25, 3.0, 8.0}) {
      const double expected = 2.5 * derivative(kind, z, kParameter);
      expect(std::abs(gradient(kind, 2.5, z, kParameter) - expected) <= 1e-15, describe(k, z));
      const double infinity = std::numeric_limits<double>::infinity();
      if (is_gated(kind) && derivative(kind, z, kParameter) == 0)
        expect_equal(gradient(kind, infinity, z, kParameter), 0.0, describe(k, z) + ": kept out");
    }
  }
});

// As torch has it: what the slope does not multiply is no part of its gradient, whatever it is.
const testing::Test slope_gradients("activations: gradients of slopes", [] {
  const double infinity = std::numeric_limits<double>::infinity();
  expect_equal(slope_gradient(2.5, -2.0), -5.0, "below");
  expect_equal(slope_gradient(2.5, 2.0), 0.0, "above");
  expect_equal(slope_gradient(2.5, 0.0), 0.0, "at 0");
  expect_equal(slope_gradient(infinity, 2.0), 0.0, "kept out");
  expect_equal(slope_gradient(infinity, -2.0), -infinity, "infinite");
  expect(std::isnan(slope_gradient(2.5, std::numeric_limits<double>::quiet_NaN())), "NaN");
});

const testing::Test gate_sizes("activations: bytes of gates", [] {
  expect_equal(gate_bytes(0), 0, "none");
  expect_equal(gate_bytes(1), 4, "a word");
  expect_equal(gate_bytes(32), 4, "a bit each");
  expect_equal(gate_bytes(33), 8, "a word more");
  expect_equal(gate_bytes(int64_t(1) << 34), int64_t(1) << 31, "64 bits");
});

}  // namespace
}  // namespace fastreg
