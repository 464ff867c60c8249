// Batch norm with what stands next to it, y = dropout(act(batch_norm(pre_act(x)) + residual)), a tile at a time (see
// tile.inl). Bytes moved per element: those of batch norm; with a residual a read of it, with gates a bit more each
// way. In backward z, the argument of act, is computed again from x (and residual) by the stage that forward computed
// it with, or its gates are read.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

// A channel's coefficient for all lanes: what vectors of the planes layout take.
template <class C>
class OfChannel {
 public:
  FASTREG_HD OfChannel(const C* values, int64_t channel) : value_(broadcast(values[channel])) {}
  FASTREG_HD vector_of<C> operator[](int64_t) const { return value_; }

 private:
  vector_of<C> value_;
};
// A coefficient for each lane: what vectors of the rows layout take.
template <class C>
class OfColumns {
 public:
  FASTREG_HD OfColumns(const C* values, int64_t column) : values_(values + column) {}
  FASTREG_HD vector_of<C> operator[](int64_t i) const { return load(values_ + i); }

 private:
  const C* values_;
};

// What stages know of a layout.
struct InPlanes {
  static constexpr bool kInRows = false;
  template <class C>
  using Coefficient = OfChannel<C>;
};
struct InRows {
  static constexpr bool kInRows = true;
  template <class C>
  using Coefficient = OfColumns<C>;
};

// The tiles of a section in the planes layout, and sums over those of one channel, in S. again: whether a pass
// before has read x and dy.
template <class T, class S = double>
class PlaneTiles {
 public:
  using Layout = InPlanes;

  PlaneTiles(const Section& s, bool again)
      : runs_(s),
        channel_(s.channel),
        ahead_(prefetch_distance<T>(s.planes, s.together)),
        again_ahead_(again && s.planes.cached ? 0 : ahead_) {}

  // The next tile; false if there is none.
  bool operator()(Tile& tile) {
    tile.clear();
    tile.ahead = ahead_;
    tile.again_ahead = again_ahead_;
    while (runs_.count > 0 || runs_.advance()) {
      // A short run is not cut into two.
      if (tile.left() == 0 || (runs_.count > tile.left() && runs_.count <= kTile)) break;
      const int64_t count = runs_.count < tile.left() ? runs_.count : tile.left();
      tile.add(runs_.offset, runs_.channel, count);
      runs_.offset += count;
      runs_.count -= count;
    }
    return tile.number > 0;
  }

  template <class U>
  void add_moments(const Tile& tile, Operand<U> x, const double* centre) {
    for (const Piece& p : tile)
      sums_.add(p.count, [&](int64_t i, int64_t count, LaneSums<S>& lanes) {
        add_run_moments(x[p] + i, count, x.ahead(tile), centre[channel_], lanes);
      });
  }
  template <class C, class U>
  void add_grad_sums(const Tile& tile, const C* dy, Operand<U> x, const double* mean) {
    for (const Piece& p : tile)
      sums_.add(p.count, [&](int64_t i, int64_t count, LaneSums<S>& lanes) {
        add_run_grad_sums(dy + p.at + i, 0, x[p] + i, x.ahead(tile), count, mean[channel_], lanes);
      });
  }
  void finish(double* sums) { sums_.total(sums); }

 private:
  Runs runs_;
  int64_t channel_, ahead_, again_ahead_;
  RunSums<S> sums_;
};

// The same in the rows layout: tiles of some rows by some columns.
template <class T, class S = double>
class RowTiles {
 public:
  using Layout = InRows;

  explicit RowTiles(const Section& s, double* sums = nullptr)
      : channels_(s.planes.channels),
        first_(s.channel),
        last_(s.channel + s.together),
        row_(s.begin),
        end_(s.end),
        column_(first_),
        sums_(sums),
        other_sums_(sums + padded(s.together)) {
    if (sums) memset(sums, 0, size_t(2 * padded(s.together)) * sizeof(double));
  }

  bool operator()(Tile& tile) {
    if (column_ + columns_ >= last_) {
      row_ += rows_;
      column_ = first_;
    } else {
      column_ += columns_;
    }
    if (row_ >= end_) return false;
    columns_ = last_ - column_ < kColumns ? last_ - column_ : kColumns;
    if (column_ == first_) {
      const int64_t most = kTile / piece_pitch(columns_);
      rows_ = most < end_ - row_ ? most : end_ - row_;
    }
    tile.clear();
    tile.ahead = tile.again_ahead = prefetch_distance<T>(channels_);
    for (int64_t r = row_; r < row_ + rows_; ++r) tile.add(r * channels_ + column_, column_, columns_);
    return true;
  }

  template <class U>
  void add_moments(const Tile& tile, Operand<U> x, const double* centre) {
    add_row_moments<S>(x[tile.pieces[0]], pitch(x), rows_, columns_, 0, centre + column_, sums_ + (column_ - first_),
                       other_sums_ + (column_ - first_));
  }
  template <class C, class U>
  void add_grad_sums(const Tile& tile, const C* dy, Operand<U> x, const double* mean) {
    add_row_grad_sums<S>(dy, piece_pitch(columns_), x[tile.pieces[0]], pitch(x), rows_, columns_, 0, mean + column_,
                         sums_ + (column_ - first_), other_sums_ + (column_ - first_));
  }
  void finish(double*) const {}

 private:
  static constexpr int64_t kColumns = 128;  // so that at least eight rows share one load and store of sums

  template <class U>
  int64_t pitch(Operand<U> x) const {
    return x.in_buffer ? piece_pitch(columns_) : channels_;
  }

  int64_t channels_, first_, last_, row_, end_, column_, columns_ = 0, rows_ = 0;
  double *sums_, *other_sums_;
};

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
  FASTREG_HD vector_of<C> operator()(const Tile& tile, const Piece& p, int i, Whole whole, int rest) const {
    x_.prefetch(tile, p, i);
    const vector_of<C> z = normalized(load_some(x_[p] + i, whole, rest), centre_[i], delta_[i], scale_[i], shift_[i]);
    if (!residual_) return z;
    prefetch_with(tile, residual_ + p.offset + i);
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
        p, [&](int i, auto whole, int rest) { store(z + p.at + i, argument(tile, p, i, whole, rest)); });
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
      prefetch_with(tile, y + p.offset + i);
      vector_of<C> z = argument(tile, p, i, whole, rest);
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
  FASTREG_HD vector_of<C> operator()(const Tile& tile, const Piece& p, int i, Whole whole, int rest) const {
    prefetch_again(tile, dy_ + p.offset + i);
    const vector_of<C> g = dropped<C>(load_some(dy_ + p.offset + i, whole, rest), drop_, p.offset + i);
    if (!is_relu_) return g;
    const vector_of<C> zero = broadcast(C(0));
    if (has_gates_) return choose(bits_at(e_.gates, e_.gate_bytes, p.offset + i), g, zero);
    return argument_(tile, p, i, whole, rest) <= C(0) ? zero : g;
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
        p, [&](int i, auto whole, int rest) { store(dz + p.at + i, gradient(tile, p, i, whole, rest)); });
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
      const auto dz = gradient(tile, p, i, whole, rest);
      if (dresidual) {
        prefetch_with(tile, dresidual + at);
        store_some(dresidual + at, whole, rest, dz);
      }
      if (!dx) return;
      prefetch_with(tile, dx + at);
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
    activate_all(pre_act_, buffer_.values, tile.size);
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
      activate_all(e.act, z.values, tile.size);
    }
    store_dropped(tile, z.values, y, dropping(e));
  }
}

template <class Tiles, class T>
void moments_act(Tiles tiles, const T* x, const Activation& pre_act, const double* centre, double* sums) {
  Normalised<T> normalised(x, pre_act);
  for (Tile tile; tiles(tile);) {
    normalised.compute(tile);
    normalised.with([&](auto operand) { tiles.add_moments(tile, operand, centre); });
  }
  tiles.finish(sums);
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

template <class Tiles, class T>
void grad_sums_act(Tiles tiles, const T* dy, const T* x, const ForwardCoefficients<compute_t<T>>& f, const double* mean,
                   const Epilogue<T>& e, double* sums) {
  constexpr typename Tiles::Layout layout;
  Normalised<T> normalised(x, e.pre_act);
  ArgumentGradient<typename Tiles::Layout, T> gradient;
  TermSums<typename Tiles::Layout> slope_sums(e.slope_sums);
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
    normalised.with([&](auto operand) { tiles.add_grad_sums(tile, gradient.dz.values, operand, mean); });
  }
  tiles.finish(sums);
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
      moments_act(RowTiles<T, S>(s, sums), x, pre_act, centre, sums);
    } else {
      moments_act(PlaneTiles<T, S>(s, false), x, pre_act, centre, sums);
    }
  });
}

template <class T>
void normalize_section(const Section& s, const T* x, T* y, const ForwardCoefficients<compute_t<T>>& f,
                       const Epilogue<T>& e) {
  if (s.rows) {
    normalize_act(RowTiles<T>(s), x, y, f, e);
  } else {
    normalize_act(PlaneTiles<T>(s, true), x, y, f, e);
  }
}

template <class T>
void grad_sums_of_section(const Section& s, const T* dy, const T* x, const ForwardCoefficients<compute_t<T>>& f,
                          const double* mean, const Epilogue<T>& e, double* sums, Summation how) {
  in_type<T>(how, [&](auto zero) {
    using S = decltype(zero);
    if (s.rows) {
      grad_sums_act(RowTiles<T, S>(s, sums), dy, x, f, mean, e, sums);
    } else {
      grad_sums_act(PlaneTiles<T, S>(s, false), dy, x, f, mean, e, sums);
    }
  });
}

template <class T>
void grad_input_of_section(const Section& s, const T* dy, const T* x, T* dx, T* dresidual,
                           const ForwardCoefficients<compute_t<T>>& f, const BackwardCoefficients<compute_t<T>>& b,
                           const Epilogue<T>& e) {
  if (s.rows) {
    grad_input_act(RowTiles<T>(s), dy, x, dx, dresidual, f, b, e);
  } else {
    grad_input_act(PlaneTiles<T>(s, true), dy, x, dx, dresidual, f, b, e);
  }
}

}  // namespace fastreg::cpu::FASTREG_ISA
