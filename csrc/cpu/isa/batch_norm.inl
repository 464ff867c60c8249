// Batch norm over ranges of a channel ("planes" layouts) or of rows (channels-last): sums, and what is computed of them
// for each element. Bytes moved per element: those of the sums, one read and one write to normalise (two reads for the
// input's gradient); where a channel's range fits in the cache, the second reading finds it there.
#pragma once

#include "cpu/isa/batch_norm_sums.inl"

namespace fastreg::cpu::FASTREG_ISA {

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
void normalize_planes(const Section& s, const T* x, T* y, const ForwardCoefficients<compute_t<T>>& f) {
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
void grad_input_planes(const Section& section, const T* dy, const T* x, T* dx,
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

// f(i, channel, whole, count) for the vectors of some rows, from element i on, which is of that channel. Where rows lie
// together a vector may begin in one and end in the next. In wide rows some columns after others, so that the
// coefficients stay in the first-level cache.
template <class T, class F>
FASTREG_HD void for_each_vector_of_rows(const Section& s, F&& f) {
  const int64_t pitch = s.planes.channels;
  const auto run = [&](int64_t i, int64_t last, int64_t c) {
    const int64_t step = kLanes<T> % pitch;
    for (; i + kLanes<T> <= last; i += kLanes<T>) {
      f(i, c, std::true_type{}, kLanes<T>);
      c += step;
      if (c >= pitch) c -= pitch;
    }
    if (i < last) f(i, c, std::false_type{}, last - i);
  };
  if (s.together == pitch && pitch <= kMostColumns) return run(s.begin * pitch, s.end * pitch, 0);
  const int64_t end = s.channel + s.together;
  for (int64_t c = s.channel; c < end; c += kMostColumns)
    for (int64_t row = s.begin; row < s.end; ++row)
      run(row * pitch + c, row * pitch + (c + kMostColumns < end ? c + kMostColumns : end), c);
}

template <class T>
void normalize_rows(const Section& section, const T* x, T* y, const ForwardCoefficients<compute_t<T>>& f) {
  const int64_t ahead = prefetch_distance<T>(section.planes.channels);
  for_each_vector_of_rows<T>(section, [&](int64_t i, int64_t c, auto whole, int64_t count) {
    prefetch(x + i + ahead);
    prefetch(y + i + ahead);
    store_some(y + i, whole, count,
               normalized(load_some(x + i, whole, count), load(f.centre + c), load(f.delta + c), load(f.scale + c),
                          load(f.shift + c)));
  });
}

template <class T>
void grad_input_rows(const Section& section, const T* dy, const T* x, T* dx,
                     const BackwardCoefficients<compute_t<T>>& f) {
  const int64_t ahead = prefetch_distance<T>(section.planes.channels);
  for_each_vector_of_rows<T>(section, [&](int64_t i, int64_t c, auto whole, int64_t count) {
    prefetch(x + i + ahead);
    prefetch(dy + i + ahead);
    prefetch(dx + i + ahead);
    store_some(dx + i, whole, count,
               input_gradient(load_some(dy + i, whole, count), load_some(x + i, whole, count), load(f.centre + c),
                              load(f.delta + c), load(f.scale + c), load(f.mean_dy + c), load(f.slope + c)));
  });
}

// ---- The same for either layout ----

template <class T>
void moments(const Section& s, const T* x, const double* centre, double* sums, Summation how) {
  if (s.rows) {
    moments_rows(s, x, centre, sums, how);
  } else {
    moments_planes(s, x, centre[s.channel], sums, how);
  }
}

template <class T>
void normalize(const Section& s, const T* x, T* y, const ForwardCoefficients<compute_t<T>>& f) {
  if (s.rows) {
    normalize_rows(s, x, y, f);
  } else {
    normalize_planes(s, x, y, f);
  }
}

template <class T>
void grad_sums(const Section& s, const T* dy, const T* x, const double* mean, double* sums, Summation how) {
  if (s.rows) {
    grad_sums_rows(s, dy, x, mean, sums, how);
  } else {
    grad_sums_planes(s, dy, x, mean[s.channel], sums, how);
  }
}

template <class T>
void grad_input(const Section& s, const T* dy, const T* x, T* dx, const BackwardCoefficients<compute_t<T>>& f) {
  if (s.rows) {
    grad_input_rows(s, dy, x, dx, f);
  } else {
    grad_input_planes(s, dy, x, dx, f);
  }
}

}  // namespace fastreg::cpu::FASTREG_ISA
