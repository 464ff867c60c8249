// Functions of vectors of floats, in the operators that compilers know for vectors of every width. An approximation's
// coefficients minimise the largest relative error over its interval (Lawson's reweighted least squares on Chebyshev
// points, in double precision against 40 digits); errors of whole functions are those that
// tests/cpu/test_fused.py bounds.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

using i32 = f32_comparison;  // as many integers as f32 has lanes

FASTREG_HD f32 magnitude(f32 x) { return f32(i32(x) & 0x7FFFFFFF); }
FASTREG_HD f32 with_sign_of(f32 x, f32 sign) { return f32(i32(x) | (i32(sign) & int32_t(0x80000000))); }

// To how many digits a function is computed: those of floats, or as many as types of 16 bits do not miss.
enum class Digits { of_float, of_16_bits };
template <class T>
constexpr Digits kDigits = sizeof(T) == 2 ? Digits::of_16_bits : Digits::of_float;

// x = n ln 2 + r with |r| <= ln 2 / 2, and expm1(r) = r + r^2 Q(r); the error of Q's five coefficients is 1.4e-8, that
// of three 5.3e-6.
template <Digits kDigits = Digits::of_float>
struct ReducedExponential {
  f32 n, expm1_r;

  FASTREG_HD explicit ReducedExponential(f32 x) {
    constexpr float kToInteger = 12582912.0f;  // 1.5 2^23: a sum with it has no digits after the point
    n = (x * 1.44269504f + kToInteger) - kToInteger;
    const f32 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // n times the first of the two is exact
    const f32 q =
        kDigits == Digits::of_float
            ? (((1.38823956e-3f * r + 8.36718082e-3f) * r + 4.1667223e-2f) * r + 0.16666539f) * r + 0.49999997f
            : (4.12776731e-2f * r + 0.16753532f) * r + 0.5000512f;
    expm1_r = q * (r * r) + r;
  }
};

template <Digits kDigits = Digits::of_float>
FASTREG_HD f32 exponential(f32 x) {
  const ReducedExponential<kDigits> e(at_least(at_most(x, 89.0f), -104.0f));  // infinity, zero
  return scaled(e.expm1_r + 1.0f, e.n);
}

// expm1 of numbers that are not positive.
FASTREG_HD f32 exponential_less_one(f32 x) {
  const ReducedExponential<> e(at_least(x, -20.0f));  // -1
  const f32 scale = scaled(broadcast(1.0f), e.n);
  return x == 0.0f ? x : e.expm1_r * scale + (scale - 1.0f);
}

FASTREG_HD f32 hyperbolic_tangent(f32 x) {
  const f32 m = exponential_less_one(magnitude(x) * -2.0f);
  return with_sign_of(magnitude(m / (m + 2.0f)), x);
}

// The logistic function and its complement to 1, which as a difference would lose its digits where it is small.
struct Logistic {
  f32 value, complement;

  FASTREG_HD explicit Logistic(f32 x) {
    const f32 e = exponential(-x);
    value = 1.0f / (e + 1.0f);
    complement = x < 1.0f ? 1.0f - value : e * value;
  }
};

// The distribution function of the normal distribution, and exp(-x^2 / 2), which it needs.
struct Normal {
  f32 distribution, bell;

  FASTREG_HD explicit Normal(f32 x) {
    const f32 t = magnitude(x), square = x * x;
    bell = exponential(square * -0.5f);
    // At -t, where it is small: exp(t^2 / 2) times it is P(u) / (t + 3.5), u = (t - 3.5) / (t + 3.5); over [0, 14.5],
    // beyond which the exponential is zero, the error of P's ten coefficients is 7.4e-9.
    const f32 inverse = 1.0f / (t + 3.5f), u = (t - 3.5f) * inverse;
    f32 p = broadcast(1.10284796e-4f);
    for (const float c : {4.21166478e-4f, -4.94976819e-4f, -3.17481207e-3f, 6.49324525e-3f, 1.7406268e-2f,
                          -0.116053067f, 0.315425068f, -0.565561771f, 0.744416058f})
      p = p * u + c;
    const f32 tail = p * inverse * bell, body = x < 0.0f ? tail : 1.0f - tail;
    // Near 0: 1/2 + x R(x^2); over [0, 1] the error of R's six coefficients is 7.2e-10.
    f32 r = broadcast(-7.65423829e-6f);
    for (const float c : {1.13486458e-4f, -1.18632999e-3f, 9.9733239e-3f, -6.64903596e-2f, 0.398942292f})
      r = r * square + c;
    distribution = t < 1.0f ? x * r + 0.5f : body;
  }
};

// The same distribution function to the digits of 16 bits: its tail alone, with an error of P's six coefficients of
// 4.5e-6, u = (t - 3.25) / (t + 3.25).
FASTREG_HD f32 normal_distribution_of_16_bits(f32 x) {
  const f32 t = magnitude(x), bell = exponential<Digits::of_16_bits>(x * x * -0.5f);
  const f32 inverse = 1.0f / (t + 3.25f), u = (t - 3.25f) * inverse;
  f32 p = broadcast(7.63725908e-3f);
  for (const float c : {3.52640724e-4f, -8.07721391e-2f, 0.274577737f, -0.539499223f, 0.73743552f}) p = p * u + c;
  const f32 tail = p * inverse * bell;
  return x < 0.0f ? tail : 1.0f - tail;
}

}  // namespace fastreg::cpu::FASTREG_ISA
