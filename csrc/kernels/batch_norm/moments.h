// The statistics of batch norm, shared by every backend.
#pragma once

#include <cmath>

#include "kernels/common/portable.h"

namespace fastreg {

// Count, mean and sum of squared deviations from it, of values taken relative to some centre.
template <class A>
struct Moments {
  A count, mean, m2;
};

// From the sums of d and d^2. Exact enough only because d is taken relative to a value near the mean.
template <class A>
FASTREG_HD Moments<A> moments_from_sums(A count, A sum, A sum_of_squares) {
  const A mean = sum / count;
  const A m2 = sum_of_squares - sum * mean;
  return Moments<A>{count, mean, m2 < A(0) ? A(0) : m2};  // NaN stays NaN
}

// Of the union of two sets of values relative to the same centre: Chan, Golub and LeVeque, "Updating formulae and a
// pairwise algorithm for computing sample variances" (1979). Either may be empty.
template <class A>
FASTREG_HD Moments<A> merge(const Moments<A>& a, const Moments<A>& b) {
  if (b.count == A(0)) return a;
  if (a.count == A(0)) return b;
  const A count = a.count + b.count;
  const A difference = b.mean - a.mean;
  const A share = b.count / count;
  return Moments<A>{count, a.mean + difference * share, a.m2 + b.m2 + difference * difference * a.count * share};
}

// Moments with the value that they are relative to: partial results whose centres differ.
template <class A>
struct Centred {
  A centre;
  Moments<A> moments;
};
template <class A>
FASTREG_HD Centred<A> merge(const Centred<A>& a, const Centred<A>& b) {
  if (a.moments.count == A(0)) return b;
  Moments<A> moved = b.moments;
  moved.mean += b.centre - a.centre;  // both near the mean: exact, or as small an error as the values have
  return Centred<A>{a.centre, merge(a.moments, moved)};
}

template <class A>
FASTREG_HD A inverse_deviation(A variance, A eps) {
  return A(1) / std::sqrt(variance + eps);
}

// Exponential moving average; factor 1 / number of batches makes it the plain average.
template <class A>
FASTREG_HD A updated_running(A running, A value, A factor) {
  return (A(1) - factor) * running + factor * value;
}

}  // namespace fastreg
