// Activations and their derivatives, one definition for every backend. A new one is added to ActivationKind,
// kActivationNames, activate and derivative.
//
// At a kink the derivative is the one that PyTorch takes. NaN gives NaN; its derivative is NaN where the activation is
// smooth, and that of the branch that PyTorch's comparison takes where it is not. At infinities: the limit, or NaN
// where the formula multiplies infinity by 0 (as PyTorch's do).
#pragma once

#include <cmath>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>

#include "kernels/common/portable.h"

namespace fastreg {

enum class ActivationKind : int {
  identity,
  relu,
  relu6,
  leaky_relu,
  elu,
  silu,
  mish,
  gelu,
  gelu_tanh,
  hardswish,
  hardsigmoid,
  sigmoid,
  tanh,
  prelu,  // and after it others whose parameter is learned
};

// In the order of ActivationKind.
inline constexpr std::string_view kActivationNames[] = {"identity",    "relu",    "relu6", "leaky_relu", "elu",
                                                        "silu",        "mish",    "gelu",  "gelu_tanh",  "hardswish",
                                                        "hardsigmoid", "sigmoid", "tanh",  "prelu"};

constexpr int kActivationKinds = int(std::size(kActivationNames));
constexpr int kUnweightedKinds = int(ActivationKind::prelu);

// Whether the parameter is learned, so that it has a gradient.
FASTREG_HD constexpr bool is_weighted(ActivationKind kind) { return int(kind) >= kUnweightedKinds; }

inline std::optional<ActivationKind> activation_named(std::string_view name) {
  int kind = 0;
  for (const std::string_view known : kActivationNames) {
    if (name == known) return ActivationKind(kind);
    ++kind;
  }
  return std::nullopt;
}

// parameter: the slope of leaky_relu below 0, the alpha of elu; of no meaning to the others. prelu's slope is learned,
// and may be one per channel: where functions below take a parameter it is that of the element.
struct Activation {
  ActivationKind kind = ActivationKind::identity;
  double parameter = 0;
};

namespace detail {
template <int... kKinds, class F>
FASTREG_HD void with_kind(ActivationKind kind, std::integer_sequence<int, kKinds...>, F&& f) {
  ((int(kind) == kKinds && (f(std::integral_constant<ActivationKind, ActivationKind(kKinds)>{}), true)) || ...);
}
}  // namespace detail

// f(constant) with the kind as a constant: one choice, for as many values as f works on. There is nothing to do for
// identity.
template <class F>
FASTREG_HD void with_kind(ActivationKind kind, F&& f) {
  if (kind == ActivationKind::identity) return;
  detail::with_kind(kind, std::make_integer_sequence<int, kActivationKinds>{}, f);
}
// The same where the parameter is not learned.
template <class F>
FASTREG_HD void with_unweighted_kind(ActivationKind kind, F&& f) {
  if (kind == ActivationKind::identity) return;
  detail::with_kind(kind, std::make_integer_sequence<int, kUnweightedKinds>{}, f);
}

// Whether the derivative takes two values, so that one bit tells it: see is_open.
FASTREG_HD constexpr bool is_gated(ActivationKind kind) {
  return kind == ActivationKind::relu || kind == ActivationKind::relu6 || kind == ActivationKind::leaky_relu ||
         kind == ActivationKind::hardsigmoid;
}

// Bytes of a tensor of gates: a bit for each element, in whole words. Their order is each backend's own.
FASTREG_HD constexpr int64_t gate_bytes(int64_t elements) { return (elements + 31) / 32 * 4; }

namespace detail {

// Of C's library: a function of C++'s would be an inline one, of which one instruction set's copy could serve another.
FASTREG_HD float exponential(float x) { return ::expf(x); }
FASTREG_HD double exponential(double x) { return ::exp(x); }
FASTREG_HD float exponential_less_one(float x) { return ::expm1f(x); }
FASTREG_HD double exponential_less_one(double x) { return ::expm1(x); }
FASTREG_HD float hyperbolic_tangent(float x) { return ::tanhf(x); }
FASTREG_HD double hyperbolic_tangent(double x) { return ::tanh(x); }
FASTREG_HD float complementary_error(float x) { return ::erfcf(x); }
FASTREG_HD double complementary_error(double x) { return ::erfc(x); }

// NaN stays NaN.
template <class A>
FASTREG_HD A clamped(A z, A low, A high) {
  return z < low ? low : z > high ? high : z;
}

template <class A>
FASTREG_HD A logistic(A z) {
  return A(1) / (A(1) + exponential(-z));
}

// tanh(softplus(z)) = n / (n + 2) with n = e (e + 2), e = exp(z). It is 1 in either precision from z = 40 on, where n
// is still finite: there x stands for z.
template <class A>
struct MishParts {
  A x, e, n;
};
template <class A>
FASTREG_HD MishParts<A> mish_parts(A z) {
  const A x = z > A(40) ? A(40) : z, e = exponential(x);
  return {x, e, e * (e + A(2))};
}

// gelu's approximation is z logistic(2 u), since (1 + tanh(u)) / 2 = logistic(2 u): 2 u, and its derivative.
constexpr double kTwiceSqrtTwoOverPi = 1.5957691216057307117597842397375, kGeluCube = 0.044715;
template <class A>
FASTREG_HD A gelu_argument(A z) {
  return A(kTwiceSqrtTwoOverPi) * z * (A(1) + A(kGeluCube) * z * z);
}
template <class A>
FASTREG_HD A gelu_argument_slope(A z) {
  return A(kTwiceSqrtTwoOverPi) * (A(1) + A(3 * kGeluCube) * z * z);
}

// The distribution function of the normal distribution.
template <class A>
FASTREG_HD A normal_distribution(A z) {
  constexpr A kSqrtHalf = A(0.70710678118654752440084436210485);
  return A(0.5) * complementary_error(-z * kSqrtHalf);
}

}  // namespace detail

// Of a gated activation: whether the derivative at z is the one of the open gate (1; hardsigmoid: 1 / 6) rather than
// that of the closed one (0; leaky_relu: the slope).
template <class A>
FASTREG_HD bool is_open(ActivationKind kind, A z) {
  switch (kind) {
    case ActivationKind::relu:
      return !(z <= A(0));
    case ActivationKind::relu6:
      return z > A(0) && z < A(6);
    case ActivationKind::leaky_relu:
      return z > A(0);
    default:
      return z > A(-3) && z < A(3);
  }
}

// Its derivative, given whether the gate is open.
template <class A>
FASTREG_HD A gated_derivative(ActivationKind kind, bool open, A parameter) {
  const A opened = kind == ActivationKind::hardsigmoid ? A(1) / A(6) : A(1);
  const A closed = kind == ActivationKind::leaky_relu ? parameter : A(0);
  return open ? opened : closed;
}

template <class A>
FASTREG_HD A activate(ActivationKind kind, A z, A parameter) {
  using namespace detail;
  switch (kind) {
    case ActivationKind::identity:
      return z;
    case ActivationKind::relu:
      return z < A(0) ? A(0) : z;
    case ActivationKind::relu6:
      return clamped(z, A(0), A(6));
    case ActivationKind::leaky_relu:
    case ActivationKind::prelu:
      return z > A(0) ? z : z * parameter;
    case ActivationKind::elu:
      return z > A(0) ? z : parameter * exponential_less_one(z);
    case ActivationKind::silu:
      return z / (A(1) + exponential(-z));
    case ActivationKind::mish: {
      const MishParts<A> parts = mish_parts(z);
      return z * (parts.n / (parts.n + A(2)));
    }
    case ActivationKind::gelu:
      return z * normal_distribution(z);
    case ActivationKind::gelu_tanh:
      return z / (A(1) + exponential(-gelu_argument(z)));
    case ActivationKind::hardswish:
      return z * (clamped(z + A(3), A(0), A(6)) / A(6));
    case ActivationKind::hardsigmoid:
      return clamped(z + A(3), A(0), A(6)) / A(6);
    case ActivationKind::sigmoid:
      return logistic(z);
    case ActivationKind::tanh:
      return hyperbolic_tangent(z);
  }
  return z;
}

template <class A>
FASTREG_HD A derivative(ActivationKind kind, A z, A parameter) {
  using namespace detail;
  switch (kind) {
    case ActivationKind::identity:
      return A(1);
    case ActivationKind::relu:
    case ActivationKind::relu6:
    case ActivationKind::leaky_relu:
    case ActivationKind::hardsigmoid:
      return gated_derivative(kind, is_open(kind, z), parameter);
    case ActivationKind::prelu:
      return z > A(0) ? A(1) : parameter;
    case ActivationKind::elu:
      return z > A(0) ? A(1) : parameter * exponential(z);
    case ActivationKind::silu: {
      const A s = logistic(z);
      return s * (A(1) + z * (A(1) - s));
    }
    case ActivationKind::mish: {
      const MishParts<A> parts = mish_parts(z);
      const A d = parts.n + A(2);
      return parts.n / d + parts.x * (A(4) * parts.e * (parts.e + A(1)) / d / d);
    }
    case ActivationKind::gelu: {
      constexpr A kInverseSqrtTwoPi = A(0.39894228040143267793994605993438);
      return normal_distribution(z) + z * kInverseSqrtTwoPi * exponential(A(-0.5) * z * z);
    }
    case ActivationKind::gelu_tanh: {
      // Beyond 30 it is 0 or 1 in either precision, and the cubes of large numbers overflow.
      const A x = clamped(z, A(-30), A(30));
      const A s = logistic(gelu_argument(x));
      return s + x * s * (A(1) - s) * gelu_argument_slope(x);
    }
    case ActivationKind::hardswish:
      return z <= A(-3) ? A(0) : z >= A(3) ? A(1) : z / A(3) + A(0.5);
    case ActivationKind::sigmoid: {
      const A s = logistic(z);
      return s * (A(1) - s);
    }
    case ActivationKind::tanh: {
      const A t = hyperbolic_tangent(z);
      return A(1) - t * t;
    }
  }
  return A(1);
}

// The gradient of z, from that of activate(z). What a closed gate keeps out is 0 even where the gradient is infinite.
template <class A>
FASTREG_HD A gated_gradient(ActivationKind kind, A gradient, bool open, A parameter) {
  if (open) return kind == ActivationKind::hardsigmoid ? gradient / A(6) : gradient;
  return kind == ActivationKind::leaky_relu ? gradient * parameter : A(0);
}
template <class A>
FASTREG_HD A gradient(ActivationKind kind, A gradient, A z, A parameter) {
  if (kind == ActivationKind::identity) return gradient;
  if (is_gated(kind)) return gated_gradient(kind, gradient, is_open(kind, z), parameter);
  return gradient * derivative(kind, z, parameter);
}

// The gradient of prelu's slope has one term from each element: of z, and of the gradient of its activation.
template <class A>
FASTREG_HD A slope_gradient(A gradient, A z) {
  return z > A(0) ? A(0) : gradient * z;
}

}  // namespace fastreg
