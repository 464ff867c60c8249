// The statistics of batch norm, shared by every backend.
#pragma once

#include <cmath>

#include "kernels/common/portable.h"

namespace fastreg {

// Count, mean and sum of squared deviations of some values; of none where the count is 0.
//
// The mean is centre + delta, where delta is what rounding has taken from centre: twice the working precision, however
// far from the values the one lies that their sums are relative to. Squares are in units of unit^2: they neither
// overflow nor vanish where the values do not.
template <class A>
struct Moments {
  A count, centre, delta, m2;
  A unit;  // UnitsOf<A>::large, 1 or 1 / large: the least where m2 is 0

  FASTREG_HD A variance() const { return m2 / count; }  // in units of unit^2
};

// Deviations of at most `plain`, and of 1 / plain at least, have squares and sums of many of these in units of 1.
// Beside an eps of at least `eps` smaller ones do not count.
template <class A>
struct UnitsOf;
template <>
struct UnitsOf<float> {
  static constexpr float large = 0x1p84f, plain = 0x1p45f;
  static constexpr double eps = 0x1p-66;
};
template <>
struct UnitsOf<double> {
  static constexpr double large = 0x1p600, plain = 0x1p400, eps = 0x1p-740;
};
template <class A>
FASTREG_HD A unit_for(A magnitude) {
  using Units = UnitsOf<A>;
  return magnitude > Units::plain ? Units::large : magnitude < 1 / Units::plain ? 1 / Units::large : A(1);
}
// value / unit: exact but for what vanishes beside a unit.
template <class A>
FASTREG_HD A in_units(A value, A unit) {
  return value * (unit == A(1) ? A(1) : unit > A(1) ? 1 / UnitsOf<A>::large : UnitsOf<A>::large);
}

template <class A>
struct Pair {
  A sum, error;
};
// Of two numbers, exactly: Knuth, "The Art of Computer Programming", volume 2, 4.2.2, theorem B.
template <class A>
FASTREG_HD Pair<A> exact_sum(A a, A b) {
  const A sum = a + b, of_b = sum - a;
  return {sum, (a - (sum - of_b)) + (b - of_b)};
}

// From the sums of d and d^2, d the values' distances from centre in these units.
template <class A>
FASTREG_HD Moments<A> moments_from_sums(A count, A centre, A sum, A squares, A unit) {
  const A distance = sum / count, m2 = multiply_add(-sum, distance, squares);
  const Pair<A> mean = exact_sum(centre, distance * unit);
  if (m2 <= A(0)) return {count, mean.sum, mean.error, A(0), 1 / UnitsOf<A>::large};  // NaN stays NaN
  return {count, mean.sum, mean.error, m2, unit};
}

// Whether sums in units of 1 were no good: squares have overflowed or vanished, or the centre was so far from the mean
// that the rounding of squares has taken digits from m2. (n - 1 times the other values' squares, of n that are alike
// but for the centre; as much by chance is rare, where they are not very few.)
template <class A>
FASTREG_HD bool is_doubtful(A count, A sum, A squares) {
  constexpr A most = UnitsOf<A>::plain * UnitsOf<A>::plain;
  if (!(squares <= most)) return true;
  const A of_mean = sum * (sum / count), m2 = squares - of_mean;
  const A far = count > A(17) ? A(16) : A(0.98) * (count - A(1));
  return sum != A(0) && (m2 < count / most || (count > A(4) && of_mean > far * m2));
}

// What is to be known of such values from a second look at them, relative to the mean that the first one found.
template <class A>
class SecondLook {
 public:
  FASTREG_HD explicit SecondLook(const Moments<A>& first) {
    using Units = UnitsOf<A>;
    constexpr A most = Units::plain * Units::plain;
    centre_ = first.centre - first.centre == A(0) ? first.centre : A(0);
    unit_ = A(1);
    if (first.unit > A(1) || !(first.m2 <= most)) {
      unit_ = Units::large;
    } else if ((first.unit < A(1) || first.m2 < first.count / most) && std::fabs(centre_) < A(1)) {
      unit_ = 1 / Units::large;  // values that are not small have no such deviations
    }
    shift_ = in_units(centre_, unit_);
  }
  FASTREG_HD void add(A value) {
    const A distance = in_units(value, unit_) - shift_;
    count_ += A(1);
    sum_ += distance;
    squares_ = multiply_add(distance, distance, squares_);
  }
  FASTREG_HD Moments<A> moments() const { return moments_from_sums(count_, centre_, sum_, squares_, unit_); }

 private:
  A centre_, unit_, shift_, count_ = A(0), sum_ = A(0), squares_ = A(0);
};

// part / whole from an estimate of 1 / whole that is right to some units in the last place.
FASTREG_HD float refined_quotient(float part, float whole, float estimate) {
  const float quotient = part * estimate;
  return multiply_add(multiply_add(-whole, quotient, part), estimate, quotient);
}

// Of counts. On the GPU without the branches that a division has for operands near the limits of the type.
FASTREG_HD float share_of(float part, float whole) {
#if defined(__CUDA_ARCH__)
  float estimate;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(estimate) : "f"(whole));
  return refined_quotient(part, whole, estimate);
#else
  return part / whole;
#endif
}
FASTREG_HD double share_of(double part, double whole) { return part / whole; }

// Of the union of two sets of values: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
// computing sample variances" (1979). Either may be empty.
template <class A>
FASTREG_HD Moments<A> merge(const Moments<A>& a, const Moments<A>& b) {
  if (b.count == A(0)) return a;
  if (a.count == A(0)) return b;
  const A count = a.count + b.count;
  const A share = a.count == b.count ? A(0.5) : share_of(b.count, count);
  const A distance = (b.centre - a.centre) + (b.delta - a.delta);
  const Pair<A> mean = exact_sum(a.centre, multiply_add(distance, share, a.delta));

  A unit = unit_for(std::fabs(distance));
  unit = unit < a.unit ? a.unit : unit;
  unit = unit < b.unit ? b.unit : unit;
  const auto squares_of = [&](const Moments<A>& m) {
    constexpr A step = 1 / UnitsOf<A>::large;
    return m.unit < unit ? m.m2 * step * step : m.m2;  // in larger units: next to nothing
  };
  const A d = in_units(distance, unit);
  return {count, mean.sum, mean.error, multiply_add(d * (a.count * share), d, squares_of(a) + squares_of(b)), unit};
}

template <class A>
FASTREG_HD A inverse_deviation(A variance, A eps) {
  return A(1) / std::sqrt(variance + eps);
}
// Of float rounded once: a step of Newton's method makes up for the roundings of root and quotient.
FASTREG_HD float inverse_root(float value) {
  const float r = 1.0f / std::sqrt(value), product = value * r;
  const float rest = multiply_add(-product, r, 1.0f) - multiply_add(value, r, -product) * r;
  return std::fabs(rest) < 1.0f ? multiply_add(0.5f * r, rest, r) : r;  // not where the root is 0 or infinite
}
FASTREG_HD double inverse_root(double value) { return 1.0 / std::sqrt(value); }
template <class A>
FASTREG_HD A inverse_deviation(const Moments<A>& m, double eps) {
  using Units = UnitsOf<A>;
  const A variance = m.variance();
  if (m.unit == A(1)) return inverse_root(variance + A(eps));
  if (m.unit < A(1) && eps >= Units::eps) return inverse_root(A(eps));
  // Beside a large unit eps is nothing.
  const A rest = m.unit > A(1) ? A(0) : A(eps * double(Units::large) * double(Units::large));
  return in_units(inverse_root(variance + rest), m.unit);
}

// Infinite where it is beyond the type.
template <class A>
FASTREG_HD A unbiased_variance(const Moments<A>& m) {
  return m.m2 / (m.count - A(1)) * m.unit * m.unit;
}

// Exponential moving average; factor 1 / number of batches makes it the plain average.
template <class A>
FASTREG_HD A updated_running(A running, A value, A factor) {
  return (A(1) - factor) * running + factor * value;
}

}  // namespace fastreg
