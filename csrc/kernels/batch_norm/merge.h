// The statistics of a batch that lies in several parts, such as those of a group of processes, from each part's
// moments.
//
// moments: [parts, 3 channels + 1] in the compute type: per part the rows centre, mean - centre and 1 / deviation, then
// the number of values per channel. The deviation stands in for the variance, which overflows where values do not. All
// arithmetic is in double, and in the order of the parts: every process gets the same bits.
#pragma once

#include "kernels/batch_norm/moments.h"

namespace fastreg {

struct MergedStatistics {
  double centre, delta, invstd;  // what normalisation uses
  double count, mean, variance;  // unbiased
};

// Channel c of all parts together; empty ones count for nothing. value(i): moments[i] as a double. A: the type that
// centre and delta are kept in; delta has what centre loses by that.
template <class A, class Value>
FASTREG_HD MergedStatistics merged_statistics(int64_t parts, int64_t channels, int64_t c, double eps, Value&& value) {
  const int64_t pitch = 3 * channels + 1;
  Moments<double> all = {};
  for (int64_t part = 0; part < parts; ++part) {
    const double count = value(part * pitch + 3 * channels);
    if (count == 0) continue;
    const int64_t at = part * pitch + c;
    const double invstd = value(at + 2 * channels);
    all = merge(all, Moments<double>{count, value(at), value(at + channels), count / (invstd * invstd), 1});
  }
  if (all.count == 0) all.m2 = all.unit = NAN;  // of nothing
  const double centre = A(all.centre);
  return {centre,
          (all.centre - centre) + all.delta,
          inverse_deviation(all, eps),
          all.count,
          all.centre + all.delta,
          unbiased_variance(all)};
}

}  // namespace fastreg
