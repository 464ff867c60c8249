// Batch norm over ranges of a channel ("planes" layouts) or of rows (channels-last). Sums are taken in double, in an
// order that depends on the range alone. Bytes moved per element: one read for sums (two with a gradient), one read and
// one write to normalise (two reads for the input's gradient); where a channel's range fits in the cache, the
// second reading finds it there.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

// Vectors of doubles in one step of a sum: enough independent additions to hide their latency.
constexpr int kParts = 4;
constexpr int kStep = kParts * kF64;

// Two sums per lane of kParts vectors.
struct LaneSums {
  f64 a[kParts] = {}, b[kParts] = {};

  LaneSums() = default;
  FASTREG_HD LaneSums(const double* sum_a, const double* sum_b) {
    for (int k = 0; k < kParts; ++k) a[k] = load(sum_a + k * kF64), b[k] = load(sum_b + k * kF64);
  }
  FASTREG_HD void store_to(double* sum_a, double* sum_b) const {
    for (int k = 0; k < kParts; ++k) store(sum_a + k * kF64, a[k]), store(sum_b + k * kF64, b[k]);
  }
  // Their totals: halves are added to halves.
  FASTREG_HD void total(double* sums) const {
    double lanes_a[kF64], lanes_b[kF64];
    store(lanes_a, (a[0] + a[1]) + (a[2] + a[3]));
    store(lanes_b, (b[0] + b[1]) + (b[2] + b[3]));
#pragma GCC unroll 4
    for (int half = kF64 / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) lanes_a[i] += lanes_a[i + half], lanes_b[i] += lanes_b[i + half];
    sums[0] = lanes_a[0], sums[1] = lanes_b[0];
  }
};

// f(k, rest) for the vectors of doubles in the last `count` elements of a run: the vector's number, and how many
// elements there are from its first one on.
template <class F>
FASTREG_HD void for_each_part(int64_t count, F&& f) {
#pragma GCC unroll 4
  for (int k = 0; k < kParts; ++k)
    if (const int64_t rest = count - k * kF64; rest > 0) f(k, rest);
}

// kF64 elements as doubles, or the first `rest`, and `otherwise` in place of the others.
template <class T>
FASTREG_HD f64 widen_up_to(const T* p, int64_t rest, double otherwise) {
  return rest >= kF64 ? widen(p) : widen_first(p, rest, otherwise);
}

// The contiguous runs that a range of a channel's elements consists of, or of several channels' together.
class Runs {
 public:
  Runs(Planes planes, int64_t channel, int64_t begin, int64_t end, int64_t together = 1)
      : size_(planes.size),
        pitch_((planes.channels - together) * planes.size),
        first_(channel),
        last_(channel + together - 1),
        next_channel_(channel),
        left_(end - begin) {
    const int64_t plane = begin / size_, within = begin - plane * size_;
    next_ = (plane * planes.channels + channel) * size_ + within;
    rest_ = size_ - within;
  }
  explicit Runs(const Section& s) : Runs(s.planes, s.channel, s.begin, s.end, s.together) {}

  bool advance() {
    if (left_ <= 0) return false;
    offset = next_;
    channel = next_channel_;
    count = rest_ < left_ ? rest_ : left_;
    next_ += count;
    if (next_channel_++ == last_) {
      next_channel_ = first_;
      next_ += pitch_;
      left_ -= count;
      rest_ = size_;
    }
    return true;
  }

  int64_t offset = 0, count = 0, channel = 0;

 private:
  int64_t size_, pitch_;  // pitch_: from the end of a plane's runs to the next plane's
  int64_t first_, last_, next_channel_;
  int64_t left_, next_, rest_;
};

// Memory is fetched into the second-level cache ahead of time, as the hardware does within a page of 4 KiB alone, and
// as far as it sees a pattern: at each element the one in its place in runs or rows to come.
template <class T>
FASTREG_HD void prefetch(const T* p) {
  __builtin_prefetch(p, 0, 2);
}
template <class T>
FASTREG_HD void prefetch_step(const T* p) {
  constexpr int kLine = 64 / sizeof(T);
#pragma GCC unroll 8
  for (int i = 0; i < kStep; i += kLine) prefetch(p + i);
}
// The last `count` elements of a run, to the end of its last line: in short runs no other line would be waited for.
template <class T>
FASTREG_HD void prefetch_last(const T* p, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) prefetch(p + i);
  prefetch(p + count - 1);
}

// From an element of a channel to the one in its place in the plane at least so many bytes further on in the channel,
// or in the channels together; or in the next channel, where that has the next turn.
template <class T>
FASTREG_HD int64_t prefetch_distance(Planes planes, int64_t together = 1) {
  if (planes.grouped && together == 1) return planes.size;
  constexpr int64_t kAhead = 2048 / sizeof(T);
  const int64_t run = together * planes.size;
  return (kAhead + run - 1) / run * planes.channels * planes.size;
}

// ---- What is summed: d and d^2 for the moments, dy and dy * d for the gradients, d = x - centre ----

template <class V>
FASTREG_HD void add_moments(V x, V centre, V& sum, V& sum_of_squares) {
  const V d = x - centre;
  sum += d;
  sum_of_squares += d * d;
}
template <class V>
FASTREG_HD void add_grad_sums(V dy, V x, V mean, V& sum, V& sum_of_products) {
  sum += dy;
  sum_of_products += dy * (x - mean);
}

// Over `count` elements that lie together; ahead: the distance to prefetch from, 0: not at all.
template <class T>
FASTREG_HD void add_run_moments(const T* x, int64_t count, int64_t ahead, double centre, LaneSums& s) {
  const f64 c = broadcast(centre);
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    if (ahead) prefetch_step(x + i + ahead);
    for (int k = 0; k < kParts; ++k) add_moments(widen(x + i + k * kF64), c, s.a[k], s.b[k]);
  }
  if (ahead) prefetch_last(x + i + ahead, count - i);
  for_each_part(count - i, [&](int k, int64_t rest) {
    add_moments(widen_up_to(x + i + k * kF64, rest, centre), c, s.a[k], s.b[k]);
  });
}

template <class G, class T>
FASTREG_HD void add_run_grad_sums(const G* dy, int64_t dy_ahead, const T* x, int64_t x_ahead, int64_t count,
                                  double mean, LaneSums& s) {
  const f64 m = broadcast(mean);
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    if (dy_ahead) prefetch_step(dy + i + dy_ahead);
    if (x_ahead) prefetch_step(x + i + x_ahead);
    for (int k = 0; k < kParts; ++k)
      add_grad_sums(widen(dy + i + k * kF64), widen(x + i + k * kF64), m, s.a[k], s.b[k]);
  }
  if (dy_ahead) prefetch_last(dy + i + dy_ahead, count - i);
  if (x_ahead) prefetch_last(x + i + x_ahead, count - i);
  for_each_part(count - i, [&](int k, int64_t rest) {
    const int64_t j = i + k * kF64;
    add_grad_sums(widen_up_to(dy + j, rest, 0), widen_up_to(x + j, rest, mean), m, s.a[k], s.b[k]);
  });
}

template <class T>
void moments_planes(const T* x, Planes planes, int64_t channel, int64_t begin, int64_t end, double centre,
                    double* sums) {
  LaneSums s;
  const int64_t ahead = prefetch_distance<T>(planes);
  for (Runs run(planes, channel, begin, end); run.advance();)
    add_run_moments(x + run.offset, run.count, ahead, centre, s);
  s.total(sums);
}

template <class T>
void grad_sums_planes(const T* dy, const T* x, Planes planes, int64_t channel, int64_t begin, int64_t end, double mean,
                      double* sums) {
  LaneSums s;
  const int64_t ahead = prefetch_distance<T>(planes);
  for (Runs run(planes, channel, begin, end); run.advance();)
    add_run_grad_sums(dy + run.offset, ahead, x + run.offset, ahead, run.count, mean, s);
  s.total(sums);
}

// Rows that share one load and store of the channels' sums, which stay in the first-level cache.
constexpr int kRowGroup = 8;

// From an element to the one in its place in a row group to come.
template <class T>
FASTREG_HD int64_t prefetch_distance(int64_t channels) {
  constexpr int64_t kAhead = 8192 / sizeof(T);
  const int64_t group = kRowGroup * channels;
  return (kAhead + group - 1) / group * group;
}

// f(columns, whole) for each group of kStep columns; `whole` is a constant: whether x has all of them.
template <class F>
FASTREG_HD void for_each_step(int64_t channels, F&& f) {
  int64_t c = 0;
  for (; c + kStep <= channels; c += kStep) f(c, std::true_type{});
  if (c < channels) f(c, std::false_type{});
}

// kF64 elements, or as many of them as the row has, `rest`.
template <class T, class Whole>
FASTREG_HD f64 widen_column(const T* p, int64_t rest, Whole) {
  if (Whole::value || rest >= kF64) return widen(p);
  return rest > 0 ? widen_first(p, rest, 0.0) : broadcast(0.0);
}

// Over some rows, `pitch` elements apart, of so many columns, of which the arrays hold padded ones; ahead: as above.
template <class T>
FASTREG_HD void add_row_moments(const T* x, int64_t pitch, int64_t rows, int64_t columns, int64_t ahead,
                                const double* centre, double* sum, double* sum_of_squares) {
  for_each_step(columns, [&](int64_t c, auto whole) {
    LaneSums s(sum + c, sum_of_squares + c);
    f64 m[kParts];
    for (int k = 0; k < kParts; ++k) m[k] = load(centre + c + k * kF64);
    for (int64_t r = 0; r < rows; ++r) {
      if (ahead) prefetch_step(x + r * pitch + c + ahead);
      for (int k = 0; k < kParts; ++k) {
        const int64_t column = c + k * kF64;
        add_moments(widen_column(x + r * pitch + column, columns - column, whole), m[k], s.a[k], s.b[k]);
      }
    }
    s.store_to(sum + c, sum_of_squares + c);
  });
}

template <class G, class T>
FASTREG_HD void add_row_grad_sums(const G* dy, int64_t dy_pitch, const T* x, int64_t x_pitch, int64_t rows,
                                  int64_t columns, int64_t ahead, const double* mean, double* sum,
                                  double* sum_of_products) {
  for_each_step(columns, [&](int64_t c, auto whole) {
    LaneSums s(sum + c, sum_of_products + c);
    f64 m[kParts];
    for (int k = 0; k < kParts; ++k) m[k] = load(mean + c + k * kF64);
    for (int64_t r = 0; r < rows; ++r) {
      if (ahead) prefetch_step(dy + r * dy_pitch + c + ahead), prefetch_step(x + r * x_pitch + c + ahead);
      for (int k = 0; k < kParts; ++k) {
        const int64_t column = c + k * kF64, rest = columns - column;
        add_grad_sums(widen_column(dy + r * dy_pitch + column, rest, whole),
                      widen_column(x + r * x_pitch + column, rest, whole), m[k], s.a[k], s.b[k]);
      }
    }
    s.store_to(sum + c, sum_of_products + c);
  });
}

// A step's columns should not be cut short by the end of each row: so many rows are then taken as one.
constexpr int64_t kMostColumns = 1024;
inline int64_t rows_as_one(int64_t channels) {
  int64_t rows = 1;
  while (rows * channels % kStep != 0) rows *= 2;
  return rows * channels <= kMostColumns ? rows : 1;
}

// add(row, pitch, rows, columns, centre, sum, other sum) for groups of rows, of which the sums are those of channels.
template <class Add>
FASTREG_HD void sum_rows(int64_t channels, int64_t begin, int64_t end, const double* centre, double* sums, Add&& add) {
  memset(sums, 0, size_t(2 * padded(channels)) * sizeof(double));
  const int64_t as_one = rows_as_one(channels), columns = as_one * channels;
  int64_t row = begin;
  if (as_one > 1) {
    double centres[kMostColumns], more[2][kMostColumns] = {};
    for (int64_t c = 0; c < columns; c += channels) memcpy(centres + c, centre, size_t(channels) * sizeof(double));
    for (int64_t rest; (rest = (end - row) / as_one) > 0;) {
      const int64_t rows = rest < kRowGroup ? rest : kRowGroup;
      add(row, columns, rows, columns, centres, more[0], more[1]);
      row += rows * as_one;
    }
    for (int64_t c = 0; c < columns; c += channels)
      for (int64_t i = 0; i < channels; ++i) sums[i] += more[0][c + i], sums[padded(channels) + i] += more[1][c + i];
  }
  for (; row < end; row += kRowGroup)
    add(row, channels, row + kRowGroup < end ? kRowGroup : end - row, channels, centre, sums, sums + padded(channels));
}

template <class T>
void moments_rows(const T* x, int64_t channels, int64_t begin, int64_t end, const double* centre, double* sums) {
  sum_rows(channels, begin, end, centre, sums,
           [&](int64_t row, int64_t pitch, int64_t rows, int64_t columns, const double* c, double* a, double* b) {
             add_row_moments(x + row * channels, pitch, rows, columns, prefetch_distance<T>(pitch), c, a, b);
           });
}

template <class T>
void grad_sums_rows(const T* dy, const T* x, int64_t channels, int64_t begin, int64_t end, const double* mean,
                    double* sums) {
  sum_rows(channels, begin, end, mean, sums,
           [&](int64_t row, int64_t pitch, int64_t rows, int64_t columns, const double* m, double* a, double* b) {
             add_row_grad_sums(dy + row * channels, pitch, x + row * channels, pitch, rows, columns,
                               prefetch_distance<T>(pitch), m, a, b);
           });
}

// ---- Elementwise ----

template <class V>
FASTREG_HD V normalized(V x, V centre, V delta, V scale, V shift) {
  return ((x - centre) - delta) * scale + shift;
}
template <class V>
FASTREG_HD V input_gradient(V dy, V x, V centre, V delta, V scale, V mean_dy, V slope) {
  return ((dy - mean_dy) - ((x - centre) - delta) * slope) * scale;
}

template <class T>
void normalize_planes(const T* x, T* y, const Section& s, const ForwardCoefficients<compute_t<T>>& f) {
  const bool cached = s.planes.cached;
  const int64_t ahead = prefetch_distance<T>(s.planes, s.together);
  for (Runs run(s); run.advance();) {
    const int64_t channel = run.channel;
    const auto c = broadcast(f.centre[channel]), d = broadcast(f.delta[channel]), a = broadcast(f.scale[channel]),
               b = broadcast(f.shift[channel]);
    const T* p = x + run.offset;
    T* q = y + run.offset;
    int64_t i = 0;
    for (; i + kLanes<T> <= run.count; i += kLanes<T>) {
      if (!cached) prefetch(p + i + ahead);
      prefetch(q + i + ahead);
      store(q + i, normalized(load(p + i), c, d, a, b));
    }
    if (const int64_t rest = run.count - i) {
      if (!cached) prefetch_last(p + i + ahead, rest);
      prefetch_last(q + i + ahead, rest);
      store_first(q + i, rest, normalized(load_first(p + i, rest), c, d, a, b));
    }
  }
}

template <class T>
void grad_input_planes(const T* dy, const T* x, T* dx, const Section& section,
                       const BackwardCoefficients<compute_t<T>>& f) {
  const bool cached = section.planes.cached;
  const int64_t ahead = prefetch_distance<T>(section.planes, section.together);
  for (Runs run(section); run.advance();) {
    const int64_t channel = run.channel;
    const auto c = broadcast(f.centre[channel]), d = broadcast(f.delta[channel]), a = broadcast(f.scale[channel]),
               m = broadcast(f.mean_dy[channel]), s = broadcast(f.slope[channel]);
    const T *p = x + run.offset, *g = dy + run.offset;
    T* q = dx + run.offset;
    int64_t i = 0;
    for (; i + kLanes<T> <= run.count; i += kLanes<T>) {
      if (!cached) prefetch(p + i + ahead), prefetch(g + i + ahead);
      prefetch(q + i + ahead);
      store(q + i, input_gradient(load(g + i), load(p + i), c, d, a, m, s));
    }
    if (const int64_t rest = run.count - i) {
      if (!cached) prefetch_last(p + i + ahead, rest), prefetch_last(g + i + ahead, rest);
      prefetch_last(q + i + ahead, rest);
      store_first(q + i, rest, input_gradient(load_first(g + i, rest), load_first(p + i, rest), c, d, a, m, s));
    }
  }
}

// f(i, channel, whole, count) for the vectors of some rows, from element i on, which is of that channel. Rows lie
// together: a vector may begin in one and end in the next. In wide rows some columns after others, so that the
// coefficients stay in the first-level cache.
template <class T, class F>
FASTREG_HD void for_each_vector_of_rows(int64_t channels, int64_t begin, int64_t end, F&& f) {
  const auto run = [&](int64_t i, int64_t last, int64_t c) {
    const int64_t step = kLanes<T> % channels;
    for (; i + kLanes<T> <= last; i += kLanes<T>) {
      f(i, c, std::true_type{}, kLanes<T>);
      c += step;
      if (c >= channels) c -= channels;
    }
    if (i < last) f(i, c, std::false_type{}, last - i);
  };
  if (channels <= kMostColumns) return run(begin * channels, end * channels, 0);
  for (int64_t c = 0; c < channels; c += kMostColumns)
    for (int64_t row = begin; row < end; ++row)
      run(row * channels + c, row * channels + (c + kMostColumns < channels ? c + kMostColumns : channels), c);
}

template <class T>
void normalize_rows(const T* x, T* y, int64_t channels, int64_t begin, int64_t end,
                    const ForwardCoefficients<compute_t<T>>& f) {
  const int64_t ahead = prefetch_distance<T>(channels);
  for_each_vector_of_rows<T>(channels, begin, end, [&](int64_t i, int64_t c, auto whole, int64_t count) {
    prefetch(x + i + ahead);
    prefetch(y + i + ahead);
    store_some(y + i, whole, count,
               normalized(load_some(x + i, whole, count), load(f.centre + c), load(f.delta + c), load(f.scale + c),
                          load(f.shift + c)));
  });
}

template <class T>
void grad_input_rows(const T* dy, const T* x, T* dx, int64_t channels, int64_t begin, int64_t end,
                     const BackwardCoefficients<compute_t<T>>& f) {
  const int64_t ahead = prefetch_distance<T>(channels);
  for_each_vector_of_rows<T>(channels, begin, end, [&](int64_t i, int64_t c, auto whole, int64_t count) {
    prefetch(x + i + ahead);
    prefetch(dy + i + ahead);
    prefetch(dx + i + ahead);
    store_some(dx + i, whole, count,
               input_gradient(load_some(dy + i, whole, count), load_some(x + i, whole, count), load(f.centre + c),
                              load(f.delta + c), load(f.scale + c), load(f.mean_dy + c), load(f.slope + c)));
  });
}

}  // namespace fastreg::cpu::FASTREG_ISA
