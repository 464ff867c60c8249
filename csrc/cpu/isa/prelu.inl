// prelu over a tile: the stages that know of which channel an element is, which those of other activations do not need
// to. Layout: InPlanes or InRows of section_tiles.inl.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

// z = prelu(z)
template <class Layout, class C>
__attribute__((noinline)) void activate_by_channel(Layout, const Tile& tile, const C* slopes, C* z) {
  for (const Piece& p : tile) {
    const typename Layout::template Coefficient<C> slope(slopes, p.position);
    for_each_vector<C>(p, [&](int i, auto, int) {
      const vector_of<C> v = load(z + p.at + i);
      store(z + p.at + i, v > C(0) ? v : v * slope[i]);
    });
  }
}

// g = g prelu'(z), and z becomes the terms of the slope's gradient: g z where the slope counts, else 0.
template <class Layout, class C>
__attribute__((noinline)) void differentiate_by_channel(Layout, const Tile& tile, const C* slopes, C* z, C* g) {
  for (const Piece& p : tile) {
    const typename Layout::template Coefficient<C> slope(slopes, p.position);
    for_each_vector<C>(p, [&](int i, auto, int) {
      const vector_of<C> value = load(z + p.at + i), gradient = load(g + p.at + i);
      store(z + p.at + i, value > C(0) ? broadcast(C(0)) : gradient * value);
      store(g + p.at + i, value > C(0) ? gradient : gradient * slope[i]);
    });
  }
}

// One more sum per channel, in double, over what tiles hold in a buffer: of a section of one channel, or of rows. sums:
// of all channels; what is found is added to them.
template <class Layout>
class TermSums {
 public:
  TermSums(double* sums, int64_t) : sums_(sums) {}

  template <class C>
  FASTREG_HD void add(const Tile& tile, const C* terms) {
    for (const Piece& p : tile) {
      channel_ = p.position;
      const C* const run = terms + p.at;
      int64_t i = 0;
      for (; i + kStep<double> <= p.count; i += kStep<double>)
        for (int k = 0; k < kParts; ++k) lanes_[k] += widen(run + i + k * kF64);
      for_each_part<double>(p.count - i,
                            [&](int k, int64_t rest) { lanes_[k] += load_as<double>(run + i + k * kF64, rest, 0.0); });
    }
  }

  FASTREG_HD void finish() const {
    double lanes[kStep<double>], sum = 0;
    for (int k = 0; k < kParts; ++k) store(lanes + k * kF64, lanes_[k]);
    for (const double lane : lanes) sum += lane;
    sums_[channel_] += sum;
  }

 private:
  double* sums_;
  int64_t channel_ = 0;
  f64 lanes_[kParts] = {};
};

template <>
class TermSums<InRows> {
 public:
  TermSums(double* sums, int64_t channels) : sums_(sums, channels) {}

  template <class C>
  FASTREG_HD void add(const Tile& tile, const C* terms) {
    const Piece& first = tile.pieces[0];
    double* const to = sums_.of(first);
    for (int64_t i = 0; i < first.count; i += kF64) {
      f64 sum = load(to + i);
      for (const Piece& p : tile) sum += load_as<double>(terms + p.at + i, p.count - i, 0.0);
      store(to + i, sum);
    }
  }
  void finish() const { sums_.finish(); }

 private:
  ColumnSums sums_;
};

}  // namespace fastreg::cpu::FASTREG_ISA
