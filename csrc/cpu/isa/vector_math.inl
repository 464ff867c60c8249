// Functions of vectors of floats, in the operators that compilers know for vectors of every width. An approximation's
// coefficients minimise the largest relative error over its interval (Lawson's reweighted least squares on Chebyshev
// points, in double precision against 40 digits); errors of whole functions are those that
// tests/cpp/activation_test.cpp bounds.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

using i32 = f32_comparison;  // as many integers as f32 has lanes

FASTREG_HD f32 magnitude(f32 x) { return f32(i32(x) & 0x7FFFFFFF); }
FASTREG_HD f32 with_sign_of(f32 x, f32 sign) { return f32(i32(x) | (i32(sign) & int32_t(0x80000000))); }

// x = n ln 2 + r with |r| <= ln 2 / 2, and expm1(r) = r + r^2 Q(r); the error of Q's five coefficients is 1.4e-8.
struct ReducedExponential {
  i32 n;
  f32 expm1_r;

  FASTREG_HD explicit ReducedExponential(f32 x) {
    constexpr float kToInteger = 12582912.0f;  // 1.5 2^23: a sum with it has no digits after the point
    const f32 shifted = x * 1.44269504f + kToInteger, whole = shifted - kToInteger;
    n = i32(shifted) - bit_cast<int32_t>(kToInteger);
    const f32 r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;  // n times the first of the two is exact
    const f32 q = (((1.38823956e-3f * r + 8.36718082e-3f) * r + 4.1667223e-2f) * r + 0.16666539f) * r + 0.49999997f;
    expm1_r = q * (r * r) + r;
  }
};

FASTREG_HD f32 power_of_two(i32 n) { return f32((n + 127) << 23); }

FASTREG_HD f32 exponential(f32 x) {
  x = x > 89.0f ? broadcast(89.0f) : x;      // infinity
  x = x < -104.0f ? broadcast(-104.0f) : x;  // zero
  const ReducedExponential e(x);
  const i32 half = e.n >> 1;  // 2^n alone may be out of range
  return (e.expm1_r + 1.0f) * power_of_two(half) * power_of_two(e.n - half);
}

// expm1 of numbers that are not positive.
FASTREG_HD f32 exponential_less_one(f32 x) {
  const f32 limited = x < -20.0f ? broadcast(-20.0f) : x;  // -1
  const ReducedExponential e(limited);
  const f32 scale = power_of_two(e.n);
  return x == 0.0f ? x : e.expm1_r * scale + (scale - 1.0f);
}

FASTREG_HD f32 hyperbolic_tangent(f32 x) {
  const f32 m = exponential_less_one(magnitude(x) * -2.0f);
  return with_sign_of(magnitude(m / (m + 2.0f)), x);
}

FASTREG_HD f32 logistic(f32 x) { return 1.0f / (exponential(-x) + 1.0f); }

// The normal distribution: density sqrt(2 pi) as well, which needs the same exponential.
struct Normal {
  f32 distribution, bell;  // bell: exp(-x^2 / 2)

  // exp(t^2 / 2) times the distribution at -t is P(u) / (t + 3.5), u = (t - 3.5) / (t + 3.5); over [0, 14.5], beyond
  // which the exponential is zero, the error of P's ten coefficients is 7.4e-9.
  FASTREG_HD explicit Normal(f32 x) {
    const f32 t = magnitude(x), inverse = 1.0f / (t + 3.5f), u = (t - 3.5f) * inverse;
    f32 p = broadcast(1.10284796e-4f);
    for (const float c : {4.21166478e-4f, -4.94976819e-4f, -3.17481207e-3f, 6.49324525e-3f, 1.7406268e-2f,
                          -0.116053067f, 0.315425068f, -0.565561771f, 0.744416058f})
      p = p * u + c;
    bell = exponential(t * t * -0.5f);
    const f32 tail = p * inverse * bell;
    distribution = x < 0.0f ? tail : 1.0f - tail;
  }
};

}  // namespace fastreg::cpu::FASTREG_ISA
