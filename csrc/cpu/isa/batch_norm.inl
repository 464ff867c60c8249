// Batch norm over ranges of a channel ("planes" layouts) or of rows (channels-last). Sums are taken in double, in an
// order that depends on the range alone. Bytes moved per element: one read for sums (two with a gradient), one read and
// one write to normalise (two reads for the input's gradient); where a channel's range fits in the cache, the
// second reading finds it there.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

// Elements that one step of a double-precision sum takes: two vectors of doubles, whatever the element type.
constexpr int kWide = 2 * kF64;

struct Wide {
  f64 part[2];
};
template <class T>
FASTREG_HD Wide load_wide(const T* p) {
  const f32 v = load(p);
  return Wide{{low_half(v), high_half(v)}};
}
FASTREG_HD Wide load_wide(const double* p) { return Wide{{load(p), load(p + kF64)}}; }
FASTREG_HD void store_wide(double* p, const Wide& v) {
  store(p, v.part[0]);
  store(p + kF64, v.part[1]);
}

FASTREG_HD double sum_lanes(const Wide& v) {
  double lanes[kWide], total = 0;
  store_wide(lanes, v);
  for (double lane : lanes) total += lane;
  return total;
}

// The contiguous runs that a range of one channel's elements consists of.
class Runs {
 public:
  Runs(Planes planes, int64_t channel, int64_t begin, int64_t end)
      : planes_(planes), channel_(channel), next_(begin), end_(end) {}

  bool advance() {
    if (next_ >= end_) return false;
    const int64_t within = next_ % planes_.size;
    offset = (next_ / planes_.size * planes_.channels + channel_) * planes_.size + within;
    count = planes_.size - within < end_ - next_ ? planes_.size - within : end_ - next_;
    next_ += count;
    return true;
  }

  int64_t offset = 0, count = 0;

 private:
  Planes planes_;
  int64_t channel_, next_, end_;
};

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

template <class T>
void moments_planes(const T* x, Planes planes, int64_t channel, int64_t begin, int64_t end, double centre,
                    double* sums) {
  Wide a = {}, b = {};
  double tail_a = 0, tail_b = 0;
  const f64 wide_centre = broadcast(centre);
  for (Runs run(planes, channel, begin, end); run.advance();) {
    const T* p = x + run.offset;
    int64_t i = 0;
    for (; i + kWide <= run.count; i += kWide) {
      const Wide v = load_wide(p + i);
      for (int k = 0; k < 2; ++k) add_moments(v.part[k], wide_centre, a.part[k], b.part[k]);
    }
    for (; i < run.count; ++i) add_moments(double(to_compute(p[i])), centre, tail_a, tail_b);
  }
  sums[0] = sum_lanes(a) + tail_a;
  sums[1] = sum_lanes(b) + tail_b;
}

template <class T>
void grad_sums_planes(const T* dy, const T* x, Planes planes, int64_t channel, int64_t begin, int64_t end, double mean,
                      double* sums) {
  Wide a = {}, b = {};
  double tail_a = 0, tail_b = 0;
  const f64 wide_mean = broadcast(mean);
  for (Runs run(planes, channel, begin, end); run.advance();) {
    const T *p = x + run.offset, *g = dy + run.offset;
    int64_t i = 0;
    for (; i + kWide <= run.count; i += kWide) {
      const Wide v = load_wide(p + i), w = load_wide(g + i);
      for (int k = 0; k < 2; ++k) add_grad_sums(w.part[k], v.part[k], wide_mean, a.part[k], b.part[k]);
    }
    for (; i < run.count; ++i) add_grad_sums(double(to_compute(g[i])), double(to_compute(p[i])), mean, tail_a, tail_b);
  }
  sums[0] = sum_lanes(a) + tail_a;
  sums[1] = sum_lanes(b) + tail_b;
}

// Rows that share one load and store of the channels' sums, which stay in the first-level cache.
constexpr int kRowGroup = 8;

template <class T>
void moments_rows(const T* x, int64_t channels, int64_t begin, int64_t end, const double* centre, double* sums) {
  double *sum = sums, *sum_of_squares = sums + channels;
  memset(sums, 0, size_t(2 * channels) * sizeof(double));
  for (int64_t row = begin; row < end; row += kRowGroup) {
    const int64_t stop = row + kRowGroup < end ? row + kRowGroup : end;
    int64_t c = 0;
    for (; c + kWide <= channels; c += kWide) {
      Wide a = load_wide(sum + c), b = load_wide(sum_of_squares + c);
      const Wide m = load_wide(centre + c);
      for (int64_t r = row; r < stop; ++r) {
        const Wide v = load_wide(x + r * channels + c);
        for (int k = 0; k < 2; ++k) add_moments(v.part[k], m.part[k], a.part[k], b.part[k]);
      }
      store_wide(sum + c, a);
      store_wide(sum_of_squares + c, b);
    }
    for (; c < channels; ++c)
      for (int64_t r = row; r < stop; ++r)
        add_moments(double(to_compute(x[r * channels + c])), centre[c], sum[c], sum_of_squares[c]);
  }
}

template <class T>
void grad_sums_rows(const T* dy, const T* x, int64_t channels, int64_t begin, int64_t end, const double* mean,
                    double* sums) {
  double *sum = sums, *sum_of_products = sums + channels;
  memset(sums, 0, size_t(2 * channels) * sizeof(double));
  for (int64_t row = begin; row < end; row += kRowGroup) {
    const int64_t stop = row + kRowGroup < end ? row + kRowGroup : end;
    int64_t c = 0;
    for (; c + kWide <= channels; c += kWide) {
      Wide a = load_wide(sum + c), b = load_wide(sum_of_products + c);
      const Wide m = load_wide(mean + c);
      for (int64_t r = row; r < stop; ++r) {
        const Wide v = load_wide(x + r * channels + c), w = load_wide(dy + r * channels + c);
        for (int k = 0; k < 2; ++k) add_grad_sums(w.part[k], v.part[k], m.part[k], a.part[k], b.part[k]);
      }
      store_wide(sum + c, a);
      store_wide(sum_of_products + c, b);
    }
    for (; c < channels; ++c)
      for (int64_t r = row; r < stop; ++r)
        add_grad_sums(double(to_compute(dy[r * channels + c])), double(to_compute(x[r * channels + c])), mean[c],
                      sum[c], sum_of_products[c]);
  }
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
constexpr int kLanes = sizeof(compute_t<T>) == 4 ? kF32 : kF64;

template <class T>
void normalize_planes(const T* x, T* y, Planes planes, int64_t channel, int64_t begin, int64_t end,
                      const ForwardCoefficients<compute_t<T>>& f) {
  const auto centre = f.centre[channel], delta = f.delta[channel], scale = f.scale[channel], shift = f.shift[channel];
  const auto c = broadcast(centre), d = broadcast(delta), a = broadcast(scale), b = broadcast(shift);
  for (Runs run(planes, channel, begin, end); run.advance();) {
    const T* p = x + run.offset;
    T* q = y + run.offset;
    int64_t i = 0;
    for (; i + kLanes<T> <= run.count; i += kLanes<T>) store(q + i, normalized(load(p + i), c, d, a, b));
    for (; i < run.count; ++i) q[i] = from_compute<T>(normalized(to_compute(p[i]), centre, delta, scale, shift));
  }
}

template <class T>
void grad_input_planes(const T* dy, const T* x, T* dx, Planes planes, int64_t channel, int64_t begin, int64_t end,
                       const BackwardCoefficients<compute_t<T>>& f) {
  const auto centre = f.centre[channel], delta = f.delta[channel], scale = f.scale[channel],
             mean_dy = f.mean_dy[channel], slope = f.slope[channel];
  const auto c = broadcast(centre), d = broadcast(delta), a = broadcast(scale), m = broadcast(mean_dy),
             s = broadcast(slope);
  for (Runs run(planes, channel, begin, end); run.advance();) {
    const T *p = x + run.offset, *g = dy + run.offset;
    T* q = dx + run.offset;
    int64_t i = 0;
    for (; i + kLanes<T> <= run.count; i += kLanes<T>)
      store(q + i, input_gradient(load(g + i), load(p + i), c, d, a, m, s));
    for (; i < run.count; ++i)
      q[i] = from_compute<T>(input_gradient(to_compute(g[i]), to_compute(p[i]), centre, delta, scale, mean_dy, slope));
  }
}

template <class T>
void normalize_rows(const T* x, T* y, int64_t channels, int64_t begin, int64_t end,
                    const ForwardCoefficients<compute_t<T>>& f) {
  for (int64_t row = begin; row < end; ++row) {
    const T* p = x + row * channels;
    T* q = y + row * channels;
    int64_t c = 0;
    for (; c + kLanes<T> <= channels; c += kLanes<T>)
      store(q + c,
            normalized(load(p + c), load(f.centre + c), load(f.delta + c), load(f.scale + c), load(f.shift + c)));
    for (; c < channels; ++c)
      q[c] = from_compute<T>(normalized(to_compute(p[c]), f.centre[c], f.delta[c], f.scale[c], f.shift[c]));
  }
}

template <class T>
void grad_input_rows(const T* dy, const T* x, T* dx, int64_t channels, int64_t begin, int64_t end,
                     const BackwardCoefficients<compute_t<T>>& f) {
  for (int64_t row = begin; row < end; ++row) {
    const T *p = x + row * channels, *g = dy + row * channels;
    T* q = dx + row * channels;
    int64_t c = 0;
    for (; c + kLanes<T> <= channels; c += kLanes<T>)
      store(q + c, input_gradient(load(g + c), load(p + c), load(f.centre + c), load(f.delta + c), load(f.scale + c),
                                  load(f.mean_dy + c), load(f.slope + c)));
    for (; c < channels; ++c)
      q[c] = from_compute<T>(input_gradient(to_compute(g[c]), to_compute(p[c]), f.centre[c], f.delta[c], f.scale[c],
                                            f.mean_dy[c], f.slope[c]));
  }
}

}  // namespace fastreg::cpu::FASTREG_ISA
