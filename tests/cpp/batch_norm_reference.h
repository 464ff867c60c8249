// Batch norm in plain loops, from the values that the kernels are given; in long double, because fp64 sums would be no
// better than the fp64 kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/batch_norm/batch_norm.h"

namespace fastreg {

using Doubles = std::vector<double>;

// Where element i of channel c lies, i in [0, per_channel).
inline size_t at(const BatchNormShape& s, int64_t c, int64_t i) {
  if (s.rows) return size_t(i * s.channels + c);
  return size_t((i / s.size * s.channels + c) * s.size + i % s.size);
}

// The channel of the element that lies at j.
inline size_t channel_of(const BatchNormShape& s, size_t j) {
  return (s.rows ? j : j / size_t(s.size)) % size_t(s.channels);
}

inline std::string describe(const BatchNormShape& s) {
  return std::string(s.rows ? "rows " : "planes ") + std::to_string(s.planes) + "x" + std::to_string(s.channels) + "x" +
         std::to_string(s.size);
}

using Long = long double;

struct Problem {
  BatchNormShape shape;
  Doubles x, dy, weight, bias, running_mean, running_var;
  double eps = 1e-5;
};

// Per channel. The mean is centre + delta: one number would lose, at a large mean, what the kernels keep.
struct Statistics {
  std::vector<Long> centre, delta, var;  // var: biased

  Long deviation(double x, int64_t c) const { return (Long(x) - centre[size_t(c)]) - delta[size_t(c)]; }
};

inline Statistics batch_statistics(const Problem& p) {
  Statistics s;
  const int64_t n = p.shape.per_channel();
  for (int64_t c = 0; c < p.shape.channels; ++c) {
    Long sum = 0, squares = 0;
    const Long centre = p.x[at(p.shape, c, 0)];
    for (int64_t i = 0; i < n; ++i) sum += p.x[at(p.shape, c, i)] - centre;
    s.centre.push_back(centre);
    s.delta.push_back(sum / Long(n));
    for (int64_t i = 0; i < n; ++i) squares += std::pow(s.deviation(p.x[at(p.shape, c, i)], c), Long(2));
    s.var.push_back(squares / Long(n));
  }
  return s;
}

inline Doubles normalised(const Problem& p, const Statistics& s) {
  Doubles y(p.x.size());
  for (int64_t c = 0; c < p.shape.channels; ++c) {
    const Long scale = p.weight[size_t(c)] / std::sqrt(s.var[size_t(c)] + p.eps);
    for (int64_t i = 0; i < p.shape.per_channel(); ++i) {
      const size_t j = at(p.shape, c, i);
      y[j] = double(s.deviation(p.x[j], c) * scale + p.bias[size_t(c)]);
    }
  }
  return y;
}

struct Gradients {
  Doubles dx, dweight, dbias;
};

inline Gradients gradients(const Problem& p, const Statistics& s, bool training) {
  Gradients g;
  g.dx.resize(p.x.size());
  const auto n = Long(p.shape.per_channel());
  for (int64_t c = 0; c < p.shape.channels; ++c) {
    const Long invstd = 1 / std::sqrt(s.var[size_t(c)] + p.eps);
    Long sum = 0, sum_xhat = 0;
    for (int64_t i = 0; i < p.shape.per_channel(); ++i) {
      const size_t j = at(p.shape, c, i);
      sum += p.dy[j];
      sum_xhat += p.dy[j] * s.deviation(p.x[j], c) * invstd;
    }
    for (int64_t i = 0; i < p.shape.per_channel(); ++i) {
      const size_t j = at(p.shape, c, i);
      const Long xhat = s.deviation(p.x[j], c) * invstd;
      const Long centred = training ? p.dy[j] - sum / n - xhat * sum_xhat / n : Long(p.dy[j]);
      g.dx[j] = double(p.weight[size_t(c)] * invstd * centred);
    }
    g.dweight.push_back(double(sum_xhat));
    g.dbias.push_back(double(sum));
  }
  return g;
}

}  // namespace fastreg
