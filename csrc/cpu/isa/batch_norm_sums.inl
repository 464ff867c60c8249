// The sums of batch norm over ranges of a channel ("planes" layouts) or of rows (channels-last). They are taken in an
// order that depends on the range alone, in double or, faster, first in the compute type (Summation). Bytes moved per
// element: one read, two with a gradient.
#pragma once

#include "cpu/isa/batch_norm_runs.inl"

namespace fastreg::cpu::FASTREG_ISA {

// Vectors in one step of a sum: enough independent additions to hide their latency.
constexpr int kParts = 4;

// f(S()) for the type S that elements T are summed in.
template <class T, class F>
FASTREG_HD void in_type(Summation how, F&& f) {
  if constexpr (!std::is_same_v<T, double>)
    if (how == Summation::fast) return f(compute_t<T>());
  f(double());
}

template <class S>
using vector_of = decltype(broadcast(S()));
template <class S>
constexpr int kStep = kParts * kLanes<S>;

// A vector of elements as S, or the first `rest` of them and `otherwise` in place of the others.
template <class S, class T>
FASTREG_HD vector_of<S> load_as(const T* p) {
  if constexpr (std::is_same_v<S, double>) {
    return widen(p);
  } else {
    return load(p);
  }
}
template <class S, class T>
FASTREG_HD vector_of<S> load_as(const T* p, int64_t rest, double otherwise) {
  if (rest >= kLanes<S>) return load_as<S>(p);
  if constexpr (std::is_same_v<S, double>) {
    return widen_first(p, rest, otherwise);
  } else {
    return choose((1u << rest) - 1, load_first(p, rest), broadcast(S(otherwise)));
  }
}
// A vector of doubles, rounded to S.
template <class S>
FASTREG_HD vector_of<S> load_rounded(const double* p) {
  S values[kLanes<S>];
  for (int i = 0; i < kLanes<S>; ++i) values[i] = S(p[i]);
  return load(values);
}

// f(i, vector) for the vectors of doubles that a vector consists of, i being the first one's lane.
template <class F>
FASTREG_HD void for_each_double(f64 v, F&& f) {
  f(0, v);
}
template <class F>
FASTREG_HD void for_each_double(f32 v, F&& f) {
  float values[kF32];
  store(values, v);
  for (int i = 0; i < kF32; i += kF64) f(i, widen(values + i));
}

// Two sums per lane of kParts vectors.
template <class S>
struct LaneSums {
  vector_of<S> a[kParts] = {}, b[kParts] = {};

  // Adds each lane's: kStep of either.
  FASTREG_HD void add_to(double* sums_a, double* sums_b) const {
    const auto add = [](vector_of<S> v, double* to) {
      for_each_double(v, [&](int i, f64 more) { store(to + i, load(to + i) + more); });
    };
    for (int k = 0; k < kParts; ++k) add(a[k], sums_a + k * kLanes<S>), add(b[k], sums_b + k * kLanes<S>);
  }
};

// f(k, rest) for the vectors in the last `count` elements of a run: the vector's number, and how many elements there
// are from its first one on.
template <class S, class F>
FASTREG_HD void for_each_part(int64_t count, F&& f) {
#pragma GCC unroll 4
  for (int k = 0; k < kParts; ++k)
    if (const int64_t rest = count - k * kLanes<S>; rest > 0) f(k, rest);
}

// The sums of runs of one channel: in S over blocks of some hundred elements, of the blocks in double.
template <class S>
class RunSums {
 public:
  // add(i, count, lanes) for the elements of a run of so many, from the i-th on. A run shorter than a block is not cut.
  template <class F>
  FASTREG_HD void add(int64_t count, F&& add) {
    if constexpr (std::is_same_v<S, double>) return add(int64_t(0), count, lanes_);
    for (int64_t i = 0; i < count; i += kBlock) {
      const int64_t more = count - i < kBlock ? count - i : kBlock;
      if (in_block_ + more > kBlock) finish_block();
      add(i, more, lanes_);
      in_block_ += more;
    }
  }
  // Halves are added to halves.
  FASTREG_HD void total(double* sums) {
    finish_block();
    double a[kF64], b[kF64];
    store(a, a_);
    store(b, b_);
#pragma GCC unroll 4
    for (int half = kF64 / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) a[i] += a[i + half], b[i] += b[i + half];
    sums[0] = a[0], sums[1] = b[0];
  }

 private:
  static constexpr int64_t kBlock = 1024;

  FASTREG_HD void finish_block() {
    const auto& l = lanes_;
    for_each_double((l.a[0] + l.a[1]) + (l.a[2] + l.a[3]), [&](int, f64 more) { a_ += more; });
    for_each_double((l.b[0] + l.b[1]) + (l.b[2] + l.b[3]), [&](int, f64 more) { b_ += more; });
    lanes_ = {};
    in_block_ = 0;
  }

  LaneSums<S> lanes_;
  int64_t in_block_ = 0;
  f64 a_ = {}, b_ = {};
};

// ---- What is summed: d and d^2 for the moments, g and g * d for the gradients, d = x - centre. g is dy, or dz of an
// activation between: what a Gate makes of dy and d. Gates are made of a channel for all lanes, or from a column on.
// ----

struct NoGate {
  template <class V>
  FASTREG_HD V operator()(V dy, V) const {
    return dy;
  }
};
struct NoGates {
  FASTREG_HD NoGate of_channel(int64_t) const { return {}; }
  FASTREG_HD NoGate of_columns(int64_t) const { return {}; }
};

// z is computed as forward does.
template <class S, class Act>
struct ActGate {
  vector_of<S> delta, scale, shift;
  Act act;
  FASTREG_HD vector_of<S> operator()(vector_of<S> dy, vector_of<S> d) const {
    return act.gradient(dy, (d - delta) * scale + shift);
  }
};
template <class S, class Act>
struct ActGates {
  const ForwardCoefficients<S>& f;
  int64_t channels;
  Act act;

  FASTREG_HD ActGate<S, Act> of_channel(int64_t c) const {
    return {broadcast(f.delta[c]), broadcast(f.scale[c]), broadcast(f.shift[c]), act};
  }
  // Rows may be taken together.
  FASTREG_HD ActGate<S, Act> of_columns(int64_t column) const {
    const int64_t c = column % channels;
    return {load(f.delta + c), load(f.scale + c), load(f.shift + c), act};
  }
};

template <class V>
FASTREG_HD void add_moments(V x, V centre, V& sum, V& sum_of_squares) {
  const V d = x - centre;
  sum += d;
  sum_of_squares += d * d;
}
template <class V, class Gate>
FASTREG_HD void add_grad_sums(V dy, V x, V mean, const Gate& gate, V& sum, V& sum_of_products) {
  const V d = x - mean, g = gate(dy, d);
  sum += g;
  sum_of_products += g * d;
}

// The elements of one step.
template <class S, class T>
FASTREG_HD void prefetch_step(const T* p) {
  constexpr int kLine = 64 / sizeof(T);
#pragma GCC unroll 8
  for (int i = 0; i < kStep<S>; i += kLine) prefetch(p + i);
}

// Over `count` elements that lie together; ahead: the distance to prefetch from, 0: not at all.
template <class S, class T>
FASTREG_HD void add_run_moments(const T* x, int64_t count, int64_t ahead, double centre, LaneSums<S>& s) {
  const auto c = broadcast(S(centre));
  int64_t i = 0;
  for (; i + kStep<S> <= count; i += kStep<S>) {
    if (ahead) prefetch_step<S>(x + i + ahead);
    for (int k = 0; k < kParts; ++k) add_moments(load_as<S>(x + i + k * kLanes<S>), c, s.a[k], s.b[k]);
  }
  if (ahead) prefetch_last(x + i + ahead, count - i);
  for_each_part<S>(count - i, [&](int k, int64_t rest) {
    add_moments(load_as<S>(x + i + k * kLanes<S>, rest, centre), c, s.a[k], s.b[k]);
  });
}

template <class S, class G, class T, class Gate = NoGate>
FASTREG_HD void add_run_grad_sums(const G* dy, int64_t dy_ahead, const T* x, int64_t x_ahead, int64_t count,
                                  double mean, LaneSums<S>& s, const Gate& gate = {}) {
  const auto m = broadcast(S(mean));
  int64_t i = 0;
  for (; i + kStep<S> <= count; i += kStep<S>) {
    if (dy_ahead) prefetch_step<S>(dy + i + dy_ahead);
    if (x_ahead) prefetch_step<S>(x + i + x_ahead);
    for (int k = 0; k < kParts; ++k) {
      const int64_t j = i + k * kLanes<S>;
      add_grad_sums(load_as<S>(dy + j), load_as<S>(x + j), m, gate, s.a[k], s.b[k]);
    }
  }
  if (dy_ahead) prefetch_last(dy + i + dy_ahead, count - i);
  if (x_ahead) prefetch_last(x + i + x_ahead, count - i);
  for_each_part<S>(count - i, [&](int k, int64_t rest) {
    const int64_t j = i + k * kLanes<S>;
    add_grad_sums(load_as<S>(dy + j, rest, 0), load_as<S>(x + j, rest, mean), m, gate, s.a[k], s.b[k]);
  });
}

template <class T>
void moments_planes(const Section& section, const T* x, double centre, double* sums, Summation how) {
  in_type<T>(how, [&](auto zero) {
    RunSums<decltype(zero)> s;
    for (Runs<T> run(section); run.advance();)
      s.add(run.count, [&](int64_t i, int64_t count, auto& lanes) {
        add_run_moments(x + run.offset + i, count, run.ahead, centre, lanes);
      });
    s.total(sums);
  });
}

// gates: of sums in S.
template <class S, class T, class Gates>
void grad_sums_planes(const Section& section, const T* dy, const T* x, double mean, double* sums, const Gates& gates) {
  const auto gate = gates.of_channel(section.channel);
  RunSums<S> s;
  for (Runs<T> run(section); run.advance();)
    s.add(run.count, [&](int64_t i, int64_t count, auto& lanes) {
      const int64_t at = run.offset + i;
      add_run_grad_sums(dy + at, run.ahead, x + at, run.ahead, count, mean, lanes, gate);
    });
  s.total(sums);
}

// f(columns, whole) for each group of kStep columns; `whole` is a constant: whether x has all of them.
template <class S, class F>
FASTREG_HD void for_each_step(int64_t channels, F&& f) {
  int64_t c = 0;
  for (; c + kStep<S> <= channels; c += kStep<S>) f(c, std::true_type{});
  if (c < channels) f(c, std::false_type{});
}

// A vector's elements, or as many of them as the row has, `rest`, and those of `otherwise` in place of the others.
template <class S, class T, class Whole>
FASTREG_HD vector_of<S> load_column(const T* p, int64_t rest, Whole, vector_of<S> otherwise) {
  if (Whole::value || rest >= kLanes<S>) return load_as<S>(p);
  return rest > 0 ? choose((1u << rest) - 1, load_as<S>(p, rest, 0.0), otherwise) : otherwise;
}

// Over some rows, `pitch` elements apart, of so many columns, of which the arrays hold padded ones: to the others 0 is
// added. ahead: of the first column.
template <class S, class T>
FASTREG_HD void add_row_moments(const T* x, int64_t pitch, int64_t rows, int64_t columns, AheadInRows ahead,
                                const double* centre, double* sum, double* sum_of_squares) {
  for_each_step<S>(columns, [&](int64_t c, auto whole) {
    LaneSums<S> s;
    vector_of<S> m[kParts];
    for (int k = 0; k < kParts; ++k) m[k] = load_rounded<S>(centre + c + k * kLanes<S>);
    const int64_t distance = c < ahead.end ? ahead.distance : 0;
    for (int64_t r = 0; r < rows; ++r) {
      if (distance) prefetch_step<S>(x + r * pitch + c + distance);
      for (int k = 0; k < kParts; ++k) {
        const int64_t column = c + k * kLanes<S>;
        add_moments(load_column<S>(x + r * pitch + column, columns - column, whole, m[k]), m[k], s.a[k], s.b[k]);
      }
    }
    s.add_to(sum + c, sum_of_squares + c);
  });
}

template <class S, class G, class T, class Gates = NoGates>
FASTREG_HD void add_row_grad_sums(const G* dy, int64_t dy_pitch, const T* x, int64_t x_pitch, int64_t rows,
                                  int64_t columns, AheadInRows ahead, const double* mean, double* sum,
                                  double* sum_of_products, const Gates& gates = {}, int64_t first = 0) {
  for_each_step<S>(columns, [&](int64_t c, auto whole) {
    LaneSums<S> s;
    vector_of<S> m[kParts];
    decltype(gates.of_columns(0)) gate[kParts];
    for (int k = 0; k < kParts; ++k) m[k] = load_rounded<S>(mean + c + k * kLanes<S>);
    for (int k = 0; k < kParts; ++k) gate[k] = gates.of_columns(first + c + k * kLanes<S>);
    const int64_t distance = c < ahead.end ? ahead.distance : 0;
    for (int64_t r = 0; r < rows; ++r) {
      if (distance) {
        prefetch_step<S>(dy + r * dy_pitch + c + distance);
        prefetch_step<S>(x + r * x_pitch + c + distance);
      }
      for (int k = 0; k < kParts; ++k) {
        const int64_t column = c + k * kLanes<S>, rest = columns - column;
        add_grad_sums(load_column<S>(dy + r * dy_pitch + column, rest, whole, vector_of<S>{}),
                      load_column<S>(x + r * x_pitch + column, rest, whole, m[k]), m[k], gate[k], s.a[k], s.b[k]);
      }
    }
    s.add_to(sum + c, sum_of_products + c);
  });
}

// So many rows are taken as one.
template <class S>
int64_t rows_as_one(int64_t channels) {
  int64_t rows = 1;
  while (rows * channels % kStep<S> != 0) rows *= 2;
  return rows * channels <= kMostColumns ? rows : 1;
}

// add(offset, pitch, rows, columns, ahead, centre, sum, other sum) for groups of a section's rows, from an element on.
template <class S, class T, class Add>
FASTREG_HD void sum_rows(const Section& s, const double* centre, double* sums, Add&& add) {
  const int64_t pitch = s.planes.channels, channels = s.together;
  double *const a = sums, *const b = sums + padded(channels);
  memset(sums, 0, size_t(2 * padded(channels)) * sizeof(double));
  centre += s.channel;
  const int64_t as_one = channels == pitch ? rows_as_one<S>(channels) : 1, columns = as_one * channels;
  const int64_t elements = s.planes.samples * s.planes.size * pitch;
  const auto ahead = [&](int64_t at, int64_t distance_of_rows, int64_t columns_of_row) {
    return ahead_in_rows(elements - at, distance_of_rows, columns_of_row, kRowGroup, kStep<S>, kAheadInRows<T>);
  };
  int64_t row = s.begin;
  if (as_one > 1) {
    double centres[kMostColumns], more[2][kMostColumns] = {};
    memcpy(centres, centre, size_t(channels) * sizeof(double));
    repeat(centres, channels, columns);
    for (int64_t rest; (rest = (s.end - row) / as_one) > 0;) {
      const int64_t rows = rest < kRowGroup ? rest : kRowGroup;
      const int64_t at = row * pitch;
      add(at, columns, rows, columns, ahead(at, columns, columns), centres, more[0], more[1]);
      row += rows * as_one;
    }
    for (int64_t c = 0; c < columns; c += channels)
      for (int64_t i = 0; i < channels; ++i) a[i] += more[0][c + i], b[i] += more[1][c + i];
  }
  for (; row < s.end; row += kRowGroup) {
    const int64_t rows = row + kRowGroup < s.end ? kRowGroup : s.end - row;
    const int64_t at = row * pitch + s.channel;
    add(at, pitch, rows, channels, ahead(at, pitch, channels), centre, a, b);
  }
}

template <class T>
void moments_rows(const Section& section, const T* x, const double* centre, double* sums, Summation how) {
  in_type<T>(how, [&](auto zero) {
    using S = decltype(zero);
    sum_rows<S, T>(section, centre, sums,
                   [&](int64_t at, int64_t pitch, int64_t rows, int64_t columns, AheadInRows ahead, const double* c,
                       double* a, double* b) { add_row_moments<S>(x + at, pitch, rows, columns, ahead, c, a, b); });
  });
}

template <class S, class T, class Gates>
void grad_sums_rows(const Section& section, const T* dy, const T* x, const double* mean, double* sums,
                    const Gates& gates) {
  sum_rows<S, T>(section, mean, sums,
                 [&](int64_t at, int64_t pitch, int64_t rows, int64_t columns, AheadInRows ahead, const double* m,
                     double* a, double* b) {
                   add_row_grad_sums<S>(dy + at, pitch, x + at, pitch, rows, columns, ahead, m, a, b, gates,
                                        section.channel);
                 });
}

}  // namespace fastreg::cpu::FASTREG_ISA
