// Batch norm with what stands next to it, y = dropout(act(batch_norm(pre_act(x)) + residual)), a tile at a time (see
// section_tiles.inl). Bytes moved per element: those of batch norm; with a residual a read of it, with gates a bit more
// each way. In backward z, the argument of act, is computed again from x (and residual) by the stage that forward
// computed it with, or its gates are read.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

// ---- Stages ----

template <class T>
FASTREG_HD Dropping<compute_t<T>> dropping(const Epilogue<T>& e) {
  return {e.keep, e.scale};
}

// z, the argument of act, of vectors of a tile. U: what is normalised, x or pre_act(x).
template <class Layout, class T, class U>
class Argument {
 public:
  using C = compute_t<T>;

  FASTREG_HD Argument(const Piece& piece, Operand<U> x, const ForwardCoefficients<C>& f, const T* residual)
      : x_(x),
        residual_(residual),
        centre_(f.centre, piece.position),
        delta_(f.delta, piece.position),
        scale_(f.scale, piece.position),
        shift_(f.shift, piece.position) {}

  template <class Whole>
  FASTREG_HD vector_of<C> operator()(const Piece& p, int i, Whole whole, int rest) const {
    x_.prefetch(p, i);
    const vector_of<C> z = normalized(load_some(x_[p] + i, whole, rest), centre_[i], delta_[i], scale_[i], shift_[i]);
    if (!residual_) return z;
    prefetch_with(p, residual_ + p.offset + i);
    return z + load_some(residual_ + p.offset + i, whole, rest);
  }

 private:
  using Coefficient = typename Layout::template Coefficient<C>;
  Operand<U> x_;
  const T* residual_;
  Coefficient centre_, delta_, scale_, shift_;
};

// dx of vectors of a tile, from dz.
template <class Layout, class C>
class InputGradient {
 public:
  FASTREG_HD InputGradient(const Piece& piece, const BackwardCoefficients<C>& f)
      : is_constant_(f.mean_dy == nullptr),
        scale_(f.scale, piece.position),
        centre_(is_constant_ ? f.scale : f.centre, piece.position),
        delta_(is_constant_ ? f.scale : f.delta, piece.position),
        mean_dy_(is_constant_ ? f.scale : f.mean_dy, piece.position),
        slope_(is_constant_ ? f.scale : f.slope, piece.position) {}

  FASTREG_HD vector_of<C> operator()(int i, vector_of<C> dz, vector_of<C> x) const {
    if (is_constant_) return dz * scale_[i];
    return input_gradient(dz, x, centre_[i], delta_[i], scale_[i], mean_dy_[i], slope_[i]);
  }

 private:
  using Coefficient = typename Layout::template Coefficient<C>;
  bool is_constant_;  // the statistics are constants
  Coefficient scale_, centre_, delta_, mean_dy_, slope_;
};

template <class Layout, class T, class U>
__attribute__((noinline)) void compute_argument(Layout, const Tile& tile, Operand<U> x,
                                                const ForwardCoefficients<compute_t<T>>& f, const T* residual,
                                                compute_t<T>* z) {
  for (const Piece& p : tile) {
    const Argument<Layout, T, U> argument(p, x, f, residual);
    for_each_vector<compute_t<T>>(
        p, [&](int i, auto whole, int rest) { store(z + p.at + i, argument(p, i, whole, rest)); });
  }
}

// dz becomes dx.
template <class Layout, class C, class U>
__attribute__((noinline)) void compute_input_gradient(Layout, const Tile& tile, C* dz, Operand<U> x,
                                                      const BackwardCoefficients<C>& f) {
  for (const Piece& p : tile) {
    const InputGradient<Layout, C> gradient(p, f);
    for_each_vector<C>(p, [&](int i, auto whole, int rest) {
      store(dz + p.at + i, gradient(i, load(dz + p.at + i), load_some(x[p] + i, whole, rest)));
    });
  }
}

// ---- The most frequent activations, without stages: nothing waits in a buffer ----

template <class T>
FASTREG_HD bool is_direct(const Epilogue<T>& e) {
  return e.pre_act.kind == ActivationKind::identity &&
         (e.act.kind == ActivationKind::identity || e.act.kind == ActivationKind::relu);
}

template <class Layout, class T>
__attribute__((noinline)) void normalize_directly(Layout, const Tile& tile, const T* x, T* y,
                                                  const ForwardCoefficients<compute_t<T>>& f, const Epilogue<T>& e) {
  using C = compute_t<T>;
  const Dropping<C> drop = dropping(e);
  const bool is_relu = e.act.kind == ActivationKind::relu, writes_gates = e.gates != nullptr;
  BitWriter gates(e.gates);
  for (const Piece& p : tile) {
    const Argument<Layout, T, T> argument(p, in_memory(x), f, e.residual);
    if (writes_gates) gates.seek(p.offset);
    for_each_vector<C>(p, [&](int i, auto whole, int rest) {
      prefetch_with(p, y + p.offset + i);
      vector_of<C> z = argument(p, i, whole, rest);
      if (writes_gates) gates.push(lane_bits(~(z <= C(0))), whole, rest);
      if (is_relu) z = z < C(0) ? broadcast(C(0)) : z;
      store_some(y + p.offset + i, whole, rest, dropped<C>(z, drop, p.offset + i));
    });
  }
  if (writes_gates) gates.finish();
}

// dz of vectors of a tile.
template <class Layout, class T>
class DirectGradient {
 public:
  using C = compute_t<T>;

  FASTREG_HD DirectGradient(const Piece& piece, const T* dy, const T* x, const ForwardCoefficients<C>& f,
                            const Epilogue<T>& e)
      : e_(e),
        dy_(dy),
        argument_(piece, in_memory(x), f, e.residual),
        drop_(dropping(e)),
        is_relu_(e.act.kind == ActivationKind::relu),
        has_gates_(e.gates != nullptr) {}

  template <class Whole>
  FASTREG_HD vector_of<C> operator()(const Piece& p, int i, Whole whole, int rest) const {
    prefetch_again(p, dy_ + p.offset + i);
    const vector_of<C> g = dropped<C>(load_some(dy_ + p.offset + i, whole, rest), drop_, p.offset + i);
    if (!is_relu_) return g;
    const vector_of<C> zero = broadcast(C(0));
    if (has_gates_) return choose(bits_at(e_.gates, e_.gate_bytes, p.offset + i), g, zero);
    return argument_(p, i, whole, rest) <= C(0) ? zero : g;
  }

 private:
  const Epilogue<T>& e_;
  const T* dy_;
  Argument<Layout, T, T> argument_;
  Dropping<C> drop_;
  bool is_relu_, has_gates_;
};

template <class Layout, class T>
__attribute__((noinline)) void differentiate_directly(Layout, const Tile& tile, const T* dy, const T* x,
                                                      const ForwardCoefficients<compute_t<T>>& f, const Epilogue<T>& e,
                                                      compute_t<T>* dz) {
  for (const Piece& p : tile) {
    const DirectGradient<Layout, T> gradient(p, dy, x, f, e);
    for_each_vector<compute_t<T>>(
        p, [&](int i, auto whole, int rest) { store(dz + p.at + i, gradient(p, i, whole, rest)); });
  }
}

template <class Layout, class T>
__attribute__((noinline)) void grad_input_directly(Layout, const Tile& tile, const T* dy, const T* x, T* dx,
                                                   T* dresidual, const ForwardCoefficients<compute_t<T>>& f,
                                                   const BackwardCoefficients<compute_t<T>>& b, const Epilogue<T>& e) {
  for (const Piece& p : tile) {
    const DirectGradient<Layout, T> gradient(p, dy, x, f, e);
    const InputGradient<Layout, compute_t<T>> input_gradient(p, b);
    for_each_vector<compute_t<T>>(p, [&](int i, auto whole, int rest) {
      const int64_t at = p.offset + i;
      const auto dz = gradient(p, i, whole, rest);
      if (dresidual) {
        prefetch_with(p, dresidual + at);
        store_some(dresidual + at, whole, rest, dz);
      }
      if (!dx) return;
      prefetch_with(p, dx + at);
      store_some(dx + at, whole, rest, input_gradient(i, dz, load_some(x + at, whole, rest)));
    });
  }
}

// ---- Kernels: the stages of a tile, one tile after another ----

// What batch norm normalises: x itself where it is computed with as it is, else pre_act(x) in a buffer.
template <class T>
class Normalised {
 public:
  using C = compute_t<T>;
  Normalised(const T* x, const Activation& pre_act)
      : x_(x), pre_act_(pre_act), is_x_(pre_act.kind == ActivationKind::identity) {}

  // f(operand)
  template <class F>
  FASTREG_HD void with(F&& f) {
    if (is_x_) return f(in_memory(x_));
    f(in_buffer(static_cast<const C*>(buffer_.values)));
  }
  void compute(const Tile& tile) {
    if (is_x_) return;
    load_tile(tile, x_, buffer_.values);
    activate_all<T>(pre_act_, buffer_.values, tile.size);
  }
  // dx = dx pre_act'(x)
  void differentiate(const Tile& tile, C* dx) {
    if (is_x_) return;
    load_tile(tile, x_, buffer_.values);
    differentiate_all(pre_act_, buffer_.values, dx, tile.size);
  }

 private:
  const T* x_;
  const Activation& pre_act_;
  bool is_x_;
  TileBuffer<C> buffer_;
};

template <class Tiles, class T>
void normalize_act(Tiles tiles, const T* x, T* y, const ForwardCoefficients<compute_t<T>>& f, const Epilogue<T>& e) {
  constexpr typename Tiles::Layout layout;
  if (is_direct(e)) {
    for (Tile tile; tiles(tile);) normalize_directly(layout, tile, x, y, f, e);
    return;
  }
  Normalised<T> normalised(x, e.pre_act);
  TileBuffer<compute_t<T>> z;
  for (Tile tile; tiles(tile);) {
    normalised.compute(tile);
    normalised.with([&](auto operand) { compute_argument(layout, tile, operand, f, e.residual, z.values); });
    if (e.gates) write_gates(tile, e.act.kind, z.values, e.gates);
    if (e.act.kind == ActivationKind::prelu) {
      activate_by_channel(layout, tile, e.slopes, z.values);
    } else if (e.act.kind != ActivationKind::identity) {
      activate_all<T>(e.act, z.values, tile.size);
    }
    store_dropped(tile, z.values, y, dropping(e));
  }
}

template <class Tiles, class Sums, class T>
void moments_act(Tiles tiles, Sums sums, const T* x, const Activation& pre_act) {
  Normalised<T> normalised(x, pre_act);
  for (Tile tile; tiles(tile);) {
    normalised.compute(tile);
    normalised.with([&](auto operand) { sums.add_moments(tile, operand); });
  }
  sums.finish();
}

// dz, the gradient of z, in a buffer.
template <class Layout, class T>
class ArgumentGradient {
 public:
  using C = compute_t<T>;

  void compute(const Tile& tile, const T* dy, Normalised<T>& x, const ForwardCoefficients<C>& f, const Epilogue<T>& e) {
    load_dropped(tile, dy, dz.values, dropping(e));
    if (e.act.kind == ActivationKind::identity) return;
    if (e.gates) return differentiate_gated(tile, e.act, e.gates, e.gate_bytes, dz.values);
    x.with([&](auto operand) { compute_argument(Layout(), tile, operand, f, e.residual, z_.values); });
    if (e.act.kind == ActivationKind::prelu) {
      differentiate_by_channel(Layout(), tile, e.slopes, z_.values, dz.values);
    } else {
      differentiate_all(e.act, z_.values, dz.values, tile.size);
    }
  }

  TileBuffer<C> dz;

  // With prelu: the terms of its slope's gradient.
  const C* slope_terms() const { return z_.values; }

 private:
  TileBuffer<C> z_;
};

template <class Tiles, class Sums, class T>
void grad_sums_act(Tiles tiles, Sums sums, const T* dy, const T* x, const ForwardCoefficients<compute_t<T>>& f,
                   const Epilogue<T>& e, int64_t channels) {
  constexpr typename Tiles::Layout layout;
  Normalised<T> normalised(x, e.pre_act);
  ArgumentGradient<typename Tiles::Layout, T> gradient;
  TermSums<typename Tiles::Layout> slope_sums(e.slope_sums, channels);
  const bool direct = is_direct(e);
  for (Tile tile; tiles(tile);) {
    if (direct) {
      differentiate_directly(layout, tile, dy, x, f, e, gradient.dz.values);
    } else {
      normalised.compute(tile);
      gradient.compute(tile, dy, normalised, f, e);
    }
    if (e.dz) store_tile(tile, gradient.dz.values, e.dz);
    if (e.slope_sums) slope_sums.add(tile, gradient.slope_terms());
    normalised.with([&](auto operand) { sums.add_grad_sums(tile, gradient.dz.values, operand); });
  }
  sums.finish();
  if (e.slope_sums) slope_sums.finish();
}

template <class Tiles, class T>
void grad_input_act(Tiles tiles, const T* dy, const T* x, T* dx, T* dresidual,
                    const ForwardCoefficients<compute_t<T>>& f, const BackwardCoefficients<compute_t<T>>& b,
                    const Epilogue<T>& e) {
  constexpr typename Tiles::Layout layout;
  if (is_direct(e)) {
    for (Tile tile; tiles(tile);) grad_input_directly(layout, tile, dy, x, dx, dresidual, f, b, e);
    return;
  }
  Normalised<T> normalised(x, e.pre_act);
  ArgumentGradient<typename Tiles::Layout, T> gradient;
  auto* const dz = gradient.dz.values;
  for (Tile tile; tiles(tile);) {
    normalised.compute(tile);
    gradient.compute(tile, dy, normalised, f, e);
    if (dresidual) store_tile(tile, dz, dresidual);
    if (!dx) continue;
    normalised.with([&](auto operand) { compute_input_gradient(layout, tile, dz, operand, b); });
    normalised.differentiate(tile, dz);
    store_tile(tile, dz, dx);
  }
}

// ---- The same for either layout ----

template <class T>
void moments_of_section(const Section& s, const T* x, const Activation& pre_act, const double* centre, double* sums,
                        Summation how) {
  in_type<T>(how, [&](auto zero) {
    using S = decltype(zero);
    if (s.rows) {
      moments_act(RowTiles<T>(s), RowSums<S>(s, centre, sums), x, pre_act);
    } else {
      moments_act(PlaneTiles<T>(s, false), PlaneSums<S>(s, centre, sums), x, pre_act);
    }
  });
}

template <class T>
void normalize_section(const Section& s, const T* x, T* y, const ForwardCoefficients<compute_t<T>>& f,
                       const Epilogue<T>& e) {
  if (normalize_bare(s, x, y, f, e)) return;
  if (s.rows) {
    normalize_act(RowTiles<T>(s), x, y, f, e);
  } else {
    normalize_act(PlaneTiles<T>(s, true), x, y, f, e);
  }
}

template <class T>
void grad_sums_of_section(const Section& s, const T* dy, const T* x, const ForwardCoefficients<compute_t<T>>& f,
                          const double* mean, const Epilogue<T>& e, double* sums, Summation how) {
  const int64_t channels = s.planes.channels;
  in_type<T>(how, [&](auto zero) {
    using S = decltype(zero);
    if (grad_sums_bare<S>(s, dy, x, f, mean, e, sums)) return;
    if (s.rows) {
      grad_sums_act(RowTiles<T>(s), RowSums<S>(s, mean, sums), dy, x, f, e, channels);
    } else {
      grad_sums_act(PlaneTiles<T>(s, false), PlaneSums<S>(s, mean, sums), dy, x, f, e, channels);
    }
  });
}

template <class T>
void grad_input_of_section(const Section& s, const T* dy, const T* x, T* dx, T* dresidual,
                           const ForwardCoefficients<compute_t<T>>& f, const BackwardCoefficients<compute_t<T>>& b,
                           const Epilogue<T>& e) {
  if (grad_input_bare(s, dy, x, dx, dresidual, f, b, e)) return;
  if (s.rows) {
    grad_input_act(RowTiles<T>(s), dy, x, dx, dresidual, f, b, e);
  } else {
    grad_input_act(PlaneTiles<T>(s, true), dy, x, dx, dresidual, f, b, e);
  }
}

}  // namespace fastreg::cpu::FASTREG_ISA
