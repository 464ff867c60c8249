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

// The tiles of a section in the planes layout, and sums over them.
template <class T>
class PlaneTiles {
 public:
  template <class C>
  using Coefficient = OfChannel<C>;

  explicit PlaneTiles(const Section& s)
      : runs_(s.planes, s.channel, s.begin, s.end), channel_(s.channel), ahead_(prefetch_distance<T>(s.planes)) {}

  // The next tile; false if there is none.
  bool operator()(Tile& tile) {
    tile.clear();
    tile.ahead = ahead_;
    while (runs_.count > 0 || runs_.advance()) {
      // A short run is not cut into two.
      if (tile.left() == 0 || (runs_.count > tile.left() && runs_.count <= kTile)) break;
      const int64_t count = runs_.count < tile.left() ? runs_.count : tile.left();
      tile.add(runs_.offset, count);
      runs_.offset += count;
      runs_.count -= count;
    }
    return tile.number > 0;
  }

  // Where the coefficients of the last tile are.
  int64_t position() const { return channel_; }

  template <class U>
  void add_moments(const Tile& tile, Operand<U> x, const double* centre) {
    for (const Piece& p : tile) add_run_moments(x[p], p.count, 0, centre[channel_], sums_);
  }
  template <class C, class U>
  void add_grad_sums(const Tile& tile, const C* dy, Operand<U> x, const double* mean) {
    for (const Piece& p : tile) add_run_grad_sums(dy + p.at, x[p], p.count, 0, mean[channel_], sums_);
  }
  void finish(double* sums) const { sums_.total(sums); }

 private:
  Runs runs_;
  int64_t channel_, ahead_;
  LaneSums sums_;
};

// The same in the rows layout: tiles of some rows by some columns.
template <class T>
class RowTiles {
 public:
  template <class C>
  using Coefficient = OfColumns<C>;

  explicit RowTiles(const Section& s, double* sums = nullptr)
      : channels_(s.planes.channels), row_(s.begin), end_(s.end), sums_(sums) {
    if (sums) memset(sums, 0, size_t(2 * padded(channels_)) * sizeof(double));
  }

  bool operator()(Tile& tile) {
    if (column_ + columns_ >= channels_) {
      row_ += rows_;
      column_ = 0;
    } else {
      column_ += columns_;
    }
    if (row_ >= end_) return false;
    columns_ = channels_ - column_ < kColumns ? channels_ - column_ : kColumns;
    if (column_ == 0) {
      const int64_t most = kTile / padded(columns_);
      rows_ = most < end_ - row_ ? most : end_ - row_;
    }
    tile.clear();
    for (int64_t r = row_; r < row_ + rows_; ++r) tile.add(r * channels_ + column_, columns_);
    return true;
  }

  int64_t position() const { return column_; }

  template <class U>
  void add_moments(const Tile& tile, Operand<U> x, const double* centre) {
    add_row_moments(x[tile.pieces[0]], pitch(x), rows_, columns_, centre + column_, sums_ + column_,
                    sums_ + padded(channels_) + column_);
  }
  template <class C, class U>
  void add_grad_sums(const Tile& tile, const C* dy, Operand<U> x, const double* mean) {
    add_row_grad_sums(dy, padded(columns_), x[tile.pieces[0]], pitch(x), rows_, columns_, mean + column_,
                      sums_ + column_, sums_ + padded(channels_) + column_);
  }
  void finish(double*) const {}

 private:
  static constexpr int64_t kColumns = 128;  // so that at least eight rows share one load and store of sums

  template <class U>
  int64_t pitch(Operand<U> x) const {
    return x.in_buffer ? padded(columns_) : channels_;
  }

  int64_t channels_, row_, end_, column_ = 0, columns_ = 0, rows_ = 0;
  double* sums_;
};

// ---- Stages ----

template <template <class> class Coefficient, class U, class C>
__attribute__((noinline)) void normalize_tile(const Tile& tile, Operand<U> x, C* z, const ForwardCoefficients<C>& f,
                                              int64_t position) {
  const Coefficient<C> centre(f.centre, position), delta(f.delta, position), scale(f.scale, position),
      shift(f.shift, position);
  for (const Piece& p : tile)
    for_each_vector<C>(p, [&](int i, auto whole, int rest) {
      if (!x.in_buffer) prefetch_with(tile, x[p] + i);
      store(z + p.at + i, normalized(load_some(x[p] + i, whole, rest), centre[i], delta[i], scale[i], shift[i]));
    });
}

// dy becomes dx.
template <template <class> class Coefficient, class U, class C>
__attribute__((noinline)) void input_gradient_tile(const Tile& tile, C* dy, Operand<U> x,
                                                   const BackwardCoefficients<C>& f, int64_t position) {
  const Coefficient<C> scale(f.scale, position);
  if (f.mean_dy == nullptr) {  // the statistics are constants
    for (const Piece& p : tile)
      for_each_vector<C>(p, [&](int i, auto, int) { store(dy + p.at + i, load(dy + p.at + i) * scale[i]); });
    return;
  }
  const Coefficient<C> centre(f.centre, position), delta(f.delta, position), mean_dy(f.mean_dy, position),
      slope(f.slope, position);
  for (const Piece& p : tile)
    for_each_vector<C>(p, [&](int i, auto whole, int rest) {
      store(dy + p.at + i, input_gradient(load(dy + p.at + i), load_some(x[p] + i, whole, rest), centre[i], delta[i],
                                          scale[i], mean_dy[i], slope[i]));
    });
}

// ---- Kernels: the stages of a tile, one tile after another ----

template <class T>
FASTREG_HD Dropping<compute_t<T>> dropping(const Epilogue<T>& e) {
  return {e.keep, e.scale};
}

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

// z, the argument of act.
template <class Tiles, class T>
void compute_argument(const Tiles& tiles, const Tile& tile, Normalised<T>& x,
                      const ForwardCoefficients<compute_t<T>>& f, const T* residual, compute_t<T>* z) {
  x.with([&](auto operand) { normalize_tile<Tiles::template Coefficient>(tile, operand, z, f, tiles.position()); });
  if (residual) add_tile(tile, residual, z);
}

// dz, the gradient of z.
template <class Tiles, class T>
class ArgumentGradient {
 public:
  using C = compute_t<T>;

  void compute(const Tiles& tiles, const Tile& tile, const T* dy, Normalised<T>& x, const ForwardCoefficients<C>& f,
               const Epilogue<T>& e) {
    load_dropped(tile, dy, dz.values, dropping(e));
    if (e.act.kind == ActivationKind::identity) return;
    if (e.gates) return differentiate_gated(tile, e.act, e.gates, e.gate_bytes, dz.values);
    compute_argument(tiles, tile, x, f, e.residual, z_.values);
    differentiate_all(e.act, z_.values, dz.values, tile.size);
  }

  TileBuffer<C> dz;

 private:
  TileBuffer<C> z_;
};

template <class Tiles, class T>
void normalize_act(Tiles tiles, const T* x, T* y, const ForwardCoefficients<compute_t<T>>& f, const Epilogue<T>& e) {
  Normalised<T> normalised(x, e.pre_act);
  TileBuffer<compute_t<T>> z;
  for (Tile tile; tiles(tile);) {
    normalised.compute(tile);
    compute_argument(tiles, tile, normalised, f, e.residual, z.values);
    if (e.gates) write_gates(tile, e.act.kind, z.values, e.gates);
    if (e.act.kind != ActivationKind::identity) activate_all(e.act, z.values, tile.size);
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

template <class Tiles, class T>
void grad_sums_act(Tiles tiles, const T* dy, const T* x, const ForwardCoefficients<compute_t<T>>& f, const double* mean,
                   const Epilogue<T>& e, double* sums) {
  Normalised<T> normalised(x, e.pre_act);
  ArgumentGradient<Tiles, T> gradient;
  for (Tile tile; tiles(tile);) {
    normalised.compute(tile);
    gradient.compute(tiles, tile, dy, normalised, f, e);
    normalised.with([&](auto operand) { tiles.add_grad_sums(tile, gradient.dz.values, operand, mean); });
  }
  tiles.finish(sums);
}

template <class Tiles, class T>
void grad_input_act(Tiles tiles, const T* dy, const T* x, T* dx, T* dresidual,
                    const ForwardCoefficients<compute_t<T>>& f, const BackwardCoefficients<compute_t<T>>& b,
                    const Epilogue<T>& e) {
  Normalised<T> normalised(x, e.pre_act);
  ArgumentGradient<Tiles, T> gradient;
  auto* const dz = gradient.dz.values;
  for (Tile tile; tiles(tile);) {
    normalised.compute(tile);
    gradient.compute(tiles, tile, dy, normalised, f, e);
    if (dresidual) store_tile(tile, dz, dresidual);
    if (!dx) continue;
    normalised.with([&](auto operand) {
      input_gradient_tile<Tiles::template Coefficient>(tile, dz, operand, b, tiles.position());
    });
    normalised.differentiate(tile, dz);
    store_tile(tile, dz, dx);
  }
}

// ---- The same for either layout ----

template <class T>
void moments_of_section(const Section& s, const T* x, const Activation& pre_act, const double* centre, double* sums) {
  if (s.rows) {
    moments_act(RowTiles<T>(s, sums), x, pre_act, centre, sums);
  } else {
    moments_act(PlaneTiles<T>(s), x, pre_act, centre, sums);
  }
}

template <class T>
void normalize_section(const Section& s, const T* x, T* y, const ForwardCoefficients<compute_t<T>>& f,
                       const Epilogue<T>& e) {
  if (s.rows) {
    normalize_act(RowTiles<T>(s), x, y, f, e);
  } else {
    normalize_act(PlaneTiles<T>(s), x, y, f, e);
  }
}

template <class T>
void grad_sums_of_section(const Section& s, const T* dy, const T* x, const ForwardCoefficients<compute_t<T>>& f,
                          const double* mean, const Epilogue<T>& e, double* sums) {
  if (s.rows) {
    grad_sums_act(RowTiles<T>(s, sums), dy, x, f, mean, e, sums);
  } else {
    grad_sums_act(PlaneTiles<T>(s), dy, x, f, mean, e, sums);
  }
}

template <class T>
void grad_input_of_section(const Section& s, const T* dy, const T* x, T* dx, T* dresidual,
                           const ForwardCoefficients<compute_t<T>>& f, const BackwardCoefficients<compute_t<T>>& b,
                           const Epilogue<T>& e) {
  if (s.rows) {
    grad_input_act(RowTiles<T>(s), dy, x, dx, dresidual, f, b, e);
  } else {
    grad_input_act(PlaneTiles<T>(s), dy, x, dx, dresidual, f, b, e);
  }
}

}  // namespace fastreg::cpu::FASTREG_ISA
