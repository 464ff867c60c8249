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

// An activation is applied as act(z), and gives the gradient of z as act.gradient(dy, z). This is none.
struct NoActivation {
  template <class V>
  FASTREG_HD V operator()(V z) const {
    return z;
  }
  template <class V>
  FASTREG_HD V gradient(V dy, V) const {
    return dy;
  }
};
template <class T, class Act>
void normalize_planes(const Section& s, const T* x, T* y, const ForwardCoefficients<compute_t<T>>& f, const Act& act) {
  const bool cached = s.planes.cached;
  for (Runs<T> run(s); run.advance();) {
    const int64_t channel = run.channel, ahead = run.ahead;
    const auto c = broadcast(f.centre[channel]), d = broadcast(f.delta[channel]), a = broadcast(f.scale[channel]),
               b = broadcast(f.shift[channel]);
    const T* p = x + run.offset;
    T* q = y + run.offset;
    int64_t i = 0;
    for (; i + kLanes<T> <= run.count; i += kLanes<T>) {
      if (!cached) prefetch(p + i + ahead);
      prefetch(q + i + ahead);
      store(q + i, act(normalized(load(p + i), c, d, a, b)));
    }
    if (const int64_t rest = run.count - i) {
      if (!cached) prefetch_last(p + i + ahead, rest);
      prefetch_last(q + i + ahead, rest);
      store_first(q + i, rest, act(normalized(load_first(p + i, rest), c, d, a, b)));
    }
  }
}

template <class T, class Act>
void grad_input_planes(const Section& section, const T* dy, const T* x, T* dx,
                       const BackwardCoefficients<compute_t<T>>& f, const compute_t<T>* shift, const Act& act) {
  const bool cached = section.planes.cached;
  for (Runs<T> run(section); run.advance();) {
    const int64_t channel = run.channel, ahead = run.ahead;
    const auto c = broadcast(f.centre[channel]), d = broadcast(f.delta[channel]), a = broadcast(f.scale[channel]),
               m = broadcast(f.mean_dy[channel]), s = broadcast(f.slope[channel]), b = broadcast(shift[channel]);
    const T *p = x + run.offset, *g = dy + run.offset;
    T* q = dx + run.offset;
    const auto gradient = [&](auto dy_vector, auto x_vector) {
      return input_gradient(act.gradient(dy_vector, normalized(x_vector, c, d, a, b)), x_vector, c, d, a, m, s);
    };
    int64_t i = 0;
    for (; i + kLanes<T> <= run.count; i += kLanes<T>) {
      if (!cached) prefetch(p + i + ahead), prefetch(g + i + ahead);
      prefetch(q + i + ahead);
      store(q + i, gradient(load(g + i), load(p + i)));
    }
    if (const int64_t rest = run.count - i) {
      if (!cached) prefetch_last(p + i + ahead, rest), prefetch_last(g + i + ahead, rest);
      prefetch_last(q + i + ahead, rest);
      store_first(q + i, rest, gradient(load_first(g + i, rest), load_first(p + i, rest)));
    }
  }
}

template <class T, class Act>
void normalize_rows(const Section& section, const T* x, T* y, const ForwardCoefficients<compute_t<T>>& f,
                    const Act& act) {
  for_each_vector_of_rows<T>(section, [&](int64_t i, int64_t c, auto whole, int64_t count, int64_t ahead) {
    prefetch(x + i + ahead);
    prefetch(y + i + ahead);
    store_some(y + i, whole, count,
               act(normalized(load_some(x + i, whole, count), load(f.centre + c), load(f.delta + c), load(f.scale + c),
                              load(f.shift + c))));
  });
}

template <class T, class Act>
void grad_input_rows(const Section& section, const T* dy, const T* x, T* dx,
                     const BackwardCoefficients<compute_t<T>>& f, const compute_t<T>* shift, const Act& act) {
  for_each_vector_of_rows<T>(section, [&](int64_t i, int64_t c, auto whole, int64_t count, int64_t ahead) {
    prefetch(x + i + ahead);
    prefetch(dy + i + ahead);
    prefetch(dx + i + ahead);
    const auto v = load_some(x + i, whole, count), centre = load(f.centre + c), delta = load(f.delta + c),
               scale = load(f.scale + c);
    const auto g = act.gradient(load_some(dy + i, whole, count), normalized(v, centre, delta, scale, load(shift + c)));
    store_some(dx + i, whole, count,
               input_gradient(g, v, centre, delta, scale, load(f.mean_dy + c), load(f.slope + c)));
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

template <class T, class Act>
__attribute__((noinline)) void normalize_with(const Section& s, const T* x, T* y,
                                              const ForwardCoefficients<compute_t<T>>& f, const Act& act) {
  if (s.rows) {
    normalize_rows(s, x, y, f, act);
  } else {
    normalize_planes(s, x, y, f, act);
  }
}
template <class T>
void normalize(const Section& s, const T* x, T* y, const ForwardCoefficients<compute_t<T>>& f) {
  normalize_with(s, x, y, f, NoActivation());
}

template <class S, class T, class Gates>
void grad_sums_with(const Section& s, const T* dy, const T* x, const double* mean, double* sums, const Gates& gates) {
  if (s.rows) {
    grad_sums_rows<S>(s, dy, x, mean, sums, gates);
  } else {
    grad_sums_planes<S>(s, dy, x, mean[s.channel], sums, gates);
  }
}
template <class T>
void grad_sums(const Section& s, const T* dy, const T* x, const double* mean, double* sums, Summation how) {
  in_type<T>(how, [&](auto zero) {
    using S = decltype(zero);
    grad_sums_with<S>(s, dy, x, mean, sums, NoGates());
  });
}

template <class T, class Act>
void grad_input_with(const Section& s, const T* dy, const T* x, T* dx, const BackwardCoefficients<compute_t<T>>& f,
                     const compute_t<T>* shift, const Act& act) {
  if (s.rows) {
    grad_input_rows(s, dy, x, dx, f, shift, act);
  } else {
    grad_input_planes(s, dy, x, dx, f, shift, act);
  }
}
template <class T>
void grad_input(const Section& s, const T* dy, const T* x, T* dx, const BackwardCoefficients<compute_t<T>>& f) {
  grad_input_with(s, dy, x, dx, f, f.slope, NoActivation());  // without an activation no shift is looked at
}

}  // namespace fastreg::cpu::FASTREG_ISA
