// Activations and their derivatives over arrays in the first-level cache, whose lengths are multiples of kPieceStep.
// csrc/kernels/common/activation.h says what each one is; of floats the ones with exponentials have their formulas here
// again, in vectors.
#pragma once

#include "cpu/isa/vector_math.inl"

namespace fastreg::cpu::FASTREG_ISA {

template <ActivationKind kKind>
using KindConstant = std::integral_constant<ActivationKind, kKind>;

// f(constant) with the constant that stands for `kind`.
template <class F>
FASTREG_HD void with_constant(ActivationKind kind, F&& f) {
  using K = ActivationKind;
  switch (kind) {
    case K::identity:
      return f(KindConstant<K::identity>());
    case K::relu:
      return f(KindConstant<K::relu>());
    case K::relu6:
      return f(KindConstant<K::relu6>());
    case K::leaky_relu:
      return f(KindConstant<K::leaky_relu>());
    case K::elu:
      return f(KindConstant<K::elu>());
    case K::silu:
      return f(KindConstant<K::silu>());
    case K::mish:
      return f(KindConstant<K::mish>());
    case K::gelu:
      return f(KindConstant<K::gelu>());
    case K::gelu_tanh:
      return f(KindConstant<K::gelu_tanh>());
    case K::hardswish:
      return f(KindConstant<K::hardswish>());
    case K::hardsigmoid:
      return f(KindConstant<K::hardsigmoid>());
    case K::sigmoid:
      return f(KindConstant<K::sigmoid>());
    case K::tanh:
      return f(KindConstant<K::tanh>());
    case K::prelu:
      return;  // see prelu.inl
  }
}

constexpr bool has_exponential(ActivationKind kind) {
  using K = ActivationKind;
  return kind == K::elu || kind == K::silu || kind == K::mish || kind == K::gelu || kind == K::gelu_tanh ||
         kind == K::sigmoid || kind == K::tanh;
}

FASTREG_HD f32 gelu_argument(f32 z) {
  return float(detail::kTwiceSqrtTwoOverPi) * z * (float(detail::kGeluCube) * z * z + 1.0f);
}

struct MishParts {
  f32 x, e, n;
  FASTREG_HD explicit MishParts(f32 z) : x(at_most(z, 40.0f)), e(exponential(x)), n(e * (e + 2.0f)) {}
};

template <ActivationKind kKind, Digits kDigits>
FASTREG_HD f32 activate(f32 z, f32 parameter) {
  using K = ActivationKind;
  static_assert(has_exponential(kKind), "the others are left to the compiler's vectoriser");
  if constexpr (kKind == K::elu) return z > 0.0f ? z : parameter * exponential_less_one(z > 0.0f ? -z : z);
  if constexpr (kKind == K::silu) return z / (exponential<kDigits>(-z) + 1.0f);
  if constexpr (kKind == K::mish) {
    const MishParts m(z);
    return z * (m.n / (m.n + 2.0f));
  }
  if constexpr (kKind == K::gelu && kDigits == Digits::of_16_bits) return z * normal_distribution_of_16_bits(z);
  if constexpr (kKind == K::gelu && kDigits == Digits::of_float) return z * Normal(z).distribution;
  if constexpr (kKind == K::gelu_tanh) return z / (exponential<kDigits>(-gelu_argument(z)) + 1.0f);
  if constexpr (kKind == K::sigmoid) return Logistic(z).value;
  if constexpr (kKind == K::tanh) return hyperbolic_tangent(z);
}

template <ActivationKind kKind>
FASTREG_HD f32 derivative(f32 z, f32 parameter) {
  using K = ActivationKind;
  static_assert(has_exponential(kKind), "the others are left to the compiler's vectoriser");
  if constexpr (kKind == K::elu) return z > 0.0f ? broadcast(1.0f) : parameter * exponential(z);
  if constexpr (kKind == K::silu) {
    const f32 e = exponential(-z), s = 1.0f / (e + 1.0f), rest = e * s;
    return s * (z * (rest < 1.0f ? rest : broadcast(1.0f)) + 1.0f);  // infinity times 0, far down, stands for 1
  }
  if constexpr (kKind == K::mish) {
    const MishParts m(z);
    const f32 inverse = 1.0f / (m.n + 2.0f);
    return m.n * inverse + m.x * (4.0f * m.e * (m.e + 1.0f) * inverse * inverse);
  }
  if constexpr (kKind == K::gelu) {
    const Normal normal(z);
    return normal.distribution + z * 0.398942280f * normal.bell;
  }
  if constexpr (kKind == K::gelu_tanh) {
    const f32 x = at_least(at_most(z, 30.0f), -30.0f);  // beyond, it is 0 or 1, and the cubes overflow
    const Logistic s(gelu_argument(x));
    const f32 slope = float(detail::kTwiceSqrtTwoOverPi) * (float(3 * detail::kGeluCube) * x * x + 1.0f);
    return s.value * (x * s.complement * slope + 1.0f);
  }
  if constexpr (kKind == K::sigmoid) {
    const Logistic s(z);
    return s.value * s.complement;
  }
  if constexpr (kKind == K::tanh) {
    const Logistic s(z * 2.0f);
    return 4.0f * s.value * s.complement;
  }
}

// Whether Activated has the activation in vectors of C.
template <class C>
constexpr bool is_vectorised(ActivationKind kind) {
  return !has_exponential(kind) || std::is_same_v<C, float>;
}

template <class V, class C>
FASTREG_HD V clamped(V z, C high) {
  return at_most(at_least(z, C(0)), high);
}

// act(z) of vectors, and for some the gradient of z. T: the type that results are rounded to.
template <ActivationKind kKind, class C, class T = C>
struct Activated {
  C parameter;

  template <class V>
  FASTREG_HD V operator()(V z) const {
    using K = ActivationKind;
    if constexpr (kKind == K::identity) return z;
    if constexpr (kKind == K::relu) return at_least(z, C(0));
    if constexpr (kKind == K::relu6) return clamped(z, C(6));
    if constexpr (kKind == K::leaky_relu) return z > C(0) ? z : z * broadcast(parameter);
    if constexpr (kKind == K::hardswish) return z * (clamped(z + C(3), C(6)) * broadcast(C(1) / C(6)));
    if constexpr (kKind == K::hardsigmoid) return clamped(z + C(3), C(6)) * broadcast(C(1) / C(6));
    if constexpr (has_exponential(kKind)) return activate<kKind, kDigits<T>>(z, broadcast(parameter));
  }

  template <class V>
  FASTREG_HD V gradient(V dy, V z) const {
    if constexpr (kKind == ActivationKind::relu) {
      return z <= C(0) ? V{} : dy;
    } else {
      return dy * derivative<kKind>(z, broadcast(parameter));
    }
  }
};

// z = act(z), to the digits of T.
template <class T, class C>
__attribute__((noinline)) void activate_all(const Activation& act, C* __restrict z, int count) {
  const C parameter = C(act.parameter);
  with_constant(act.kind, [&](auto kind) {
    if constexpr (is_vectorised<C>(kind)) {
      const Activated<kind, C, T> activated{parameter};
      for (int i = 0; i < count; i += kLanes<C>) store(z + i, activated(load(z + i)));
    } else {
      for (int i = 0; i < count; ++i) z[i] = fastreg::activate(kind(), z[i], parameter);
    }
  });
}

// g = g act'(z); 0 where a derivative of two values is 0, whatever g is.
template <class C>
__attribute__((noinline)) void differentiate_all(const Activation& act, const C* __restrict z, C* __restrict g,
                                                 int count) {
  const C parameter = C(act.parameter);
  with_constant(act.kind, [&](auto kind) {
    if constexpr (std::is_same_v<C, float> && has_exponential(kind)) {
      for (int i = 0; i < count; i += kF32)
        store(g + i, load(g + i) * derivative<kind>(load(z + i), broadcast(parameter)));
    } else if constexpr (is_gated(kind) && kind != ActivationKind::leaky_relu) {
      const C slope = gated_derivative(kind(), true, parameter);
      for (int i = 0; i < count; ++i) g[i] = is_open(kind(), z[i]) ? g[i] * slope : C(0);
    } else {
      for (int i = 0; i < count; ++i) g[i] *= fastreg::derivative(kind(), z[i], parameter);
    }
  });
}

}  // namespace fastreg::cpu::FASTREG_ISA
