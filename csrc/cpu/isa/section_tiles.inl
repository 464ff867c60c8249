// The tiles that a section of a batch norm is worked through in, in either layout, their channels' coefficients, and
// their sums.
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
  template <class C>
  using Coefficient = OfChannel<C>;
};
struct InRows {
  template <class C>
  using Coefficient = OfColumns<C>;
};

// The tiles of a section in the planes layout. again: whether a pass before has read x and dy.
template <class T>
class PlaneTiles {
 public:
  using Layout = InPlanes;

  PlaneTiles(const Section& s, bool again) : runs_(s), is_cached_(again && s.planes.cached) {}

  // The next tile; false if there is none.
  bool operator()(Tile& tile) {
    tile.clear();
    while (runs_.count > 0 || runs_.advance()) {
      // A short run is not cut into two.
      if (tile.left() == 0 || (runs_.count > tile.left() && runs_.count <= kTile)) break;
      const int64_t count = runs_.count < tile.left() ? runs_.count : tile.left();
      tile.add(runs_.offset, runs_.channel, count, runs_.ahead, is_cached_ ? 0 : runs_.ahead);
      runs_.offset += count;
      runs_.count -= count;
    }
    return tile.number > 0;
  }

 private:
  Runs<T> runs_;
  bool is_cached_;
};

// Sums in S over the tiles of a section of one channel.
template <class S>
class PlaneSums {
 public:
  PlaneSums(const Section& s, const double* centre, double* sums) : centre_(centre[s.channel]), sums_(sums) {}

  template <class U>
  void add_moments(const Tile& tile, Operand<U> x) {
    for (const Piece& p : tile)
      runs_.add(p.count, [&](int64_t i, int64_t count, LaneSums<S>& lanes) {
        add_run_moments(x[p] + i, count, x.ahead(p), centre_, lanes);
      });
  }
  template <class C, class U>
  void add_grad_sums(const Tile& tile, const C* dy, Operand<U> x) {
    for (const Piece& p : tile)
      runs_.add(p.count, [&](int64_t i, int64_t count, LaneSums<S>& lanes) {
        add_run_grad_sums(dy + p.at + i, 0, x[p] + i, x.ahead(p), count, centre_, lanes);
      });
  }
  void finish() { runs_.total(sums_); }

 private:
  double centre_;
  double* sums_;
  RunSums<S> runs_;
};

// Per-channel sums over rows: in wide ones of each column, and of these in the end.
class ColumnSums {
 public:
  // sums: of the channels from the first one on; what is found is added to them.
  ColumnSums(double* sums, int64_t channels, int64_t first = 0)
      : sums_(sums), channels_(channels), first_(first), row_(wide_row(channels)) {
    if (is_wide()) memset(columns_, 0, sizeof columns_);
  }
  double* of(const Piece& p) { return (is_wide() ? columns_ : sums_) + (p.position - first_); }
  void finish() const {
    if (!is_wide()) return;
    for (int64_t column = 0; column < row_; column += channels_)
      for (int64_t c = 0; c < channels_; ++c) sums_[c] += columns_[column + c];
  }

 private:
  bool is_wide() const { return row_ > channels_; }

  double* sums_;
  int64_t channels_, first_, row_;
  double columns_[2 * kWideRow];
};

// The same in the rows layout: tiles of some rows by some columns. Rows of few channels are taken together, as wide
// ones, of which the section's last is cut short where its rows do not make a whole one.
template <class T>
class RowTiles {
 public:
  using Layout = InRows;

  explicit RowTiles(const Section& s)
      : row_(wide_row(s.planes.channels)),
        first_(s.channel),
        last_(row_ > s.planes.channels ? row_ : s.channel + s.together),
        at_(s.begin * s.planes.channels),
        end_(s.end * s.planes.channels),
        elements_(s.planes.samples * s.planes.size * s.planes.channels),
        column_(first_) {}

  bool operator()(Tile& tile) {
    column_ += columns_;
    if (column_ >= last_ || at_ + column_ >= end_) {
      at_ += rows_ * row_;
      column_ = first_;
    }
    if (at_ >= end_) return false;
    const int64_t last = last_ < end_ - at_ ? last_ : end_ - at_;
    columns_ = last - column_ < kColumns ? last - column_ : kColumns;
    if (column_ == first_) {
      const int64_t most = kTile / piece_pitch(columns_), rows = (end_ - at_ + row_ - last) / row_;
      rows_ = most < rows ? most : rows;
    }
    tile.clear();
    const AheadInRows found =
        ahead_in_rows(elements_ - at_ - column_, row_, last - column_, rows_, kColumns, kAheadInRows<T>);
    const int64_t ahead = found.end > 0 ? found.distance : 0;
    for (int64_t r = 0; r < rows_; ++r) tile.add(at_ + r * row_ + column_, column_, columns_, ahead, ahead);
    return true;
  }

 private:
  static constexpr int64_t kColumns = 128;  // so that at least eight rows share one load and store of sums

  int64_t row_, first_, last_;   // elements of a row; its columns
  int64_t at_, end_, elements_;  // where the tile's rows begin; where the section ends, and the tensor
  int64_t column_, columns_ = 0, rows_ = 0;
};

// Sums in S over the tiles of a section of rows.
template <class S>
class RowSums {
 public:
  RowSums(const Section& s, const double* centre, double* sums)
      : row_(wide_row(s.planes.channels)),
        centre_(centre),
        a_(sums, s.planes.channels, s.channel),
        b_(sums + padded(s.together), s.planes.channels, s.channel) {
    const int64_t channels = s.planes.channels;
    memset(sums, 0, size_t(2 * padded(s.together)) * sizeof(double));
    if (row_ == channels) return;
    memcpy(centres_, centre, size_t(channels) * sizeof(double));
    repeat(centres_, channels, 2 * kWideRow);
    centre_ = centres_;
  }
  RowSums(const RowSums&) = delete;

  template <class U>
  void add_moments(const Tile& tile, Operand<U> x) {
    const Piece& p = tile.pieces[0];
    add_row_moments<S>(x[p], pitch(p, x), tile.number, p.count, {}, centre_ + p.position, a_.of(p), b_.of(p));
  }
  template <class C, class U>
  void add_grad_sums(const Tile& tile, const C* dy, Operand<U> x) {
    const Piece& p = tile.pieces[0];
    add_row_grad_sums<S>(dy, piece_pitch(p.count), x[p], pitch(p, x), tile.number, p.count, {}, centre_ + p.position,
                         a_.of(p), b_.of(p));
  }
  void finish() {
    a_.finish();
    b_.finish();
  }

 private:
  template <class U>
  int64_t pitch(const Piece& p, Operand<U> x) const {
    return x.in_buffer ? piece_pitch(p.count) : row_;
  }

  int64_t row_;
  const double* centre_;
  double centres_[2 * kWideRow];
  ColumnSums a_, b_;
};

}  // namespace fastreg::cpu::FASTREG_ISA
