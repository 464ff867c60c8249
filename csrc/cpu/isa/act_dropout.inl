// y = dropout(act(x + bias)) + residual, a tile at a time (see tile.inl). Bytes moved per element: one read and one
// write, one more read of a residual; backward two reads and one write.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

// Tiles of a range, with the keep bits of their elements.
template <class T>
class DroppedTiles {
 public:
  DroppedTiles(const ActDropout<T>& a, int64_t begin, int64_t end)
      : a_(a), next_(begin), end_(end), bits_(a.drop, begin) {}

  bool operator()(Tile& tile) {
    if (next_ >= end_) return false;
    int64_t stop = next_ + kTile < end_ ? next_ + kTile : end_;
    if (a_.keep && a_.features.width > 1) {
      const int64_t group_end = (next_ / a_.features.period + 1) * a_.features.period;
      if (group_end < stop) stop = group_end;
    }
    tile.clear();
    tile.add(next_, 0, stop - next_);
    if (a_.drops) fill_words(int(stop - next_));
    next_ = stop;
    first_ = tile.pieces[0].offset;
    return true;
  }

  // Of the last tile.
  Dropping<compute_t<T>> dropping() const {
    return {a_.drops ? words_ : nullptr, compute_t<T>(a_.drop.transform.scale), first_};
  }
  // Where the bias of the last tile's first element is.
  const compute_t<T>* bias() const { return a_.bias ? a_.bias + first_ % a_.channels : nullptr; }

 private:
  void fill_words(int count) {
    const auto fill = [&](auto&& bits) {
      for (int i = 0; i < count; i += kWord) words_[i / kWord] = bits();
    };
    if (!a_.keep) return fill(bits_);
    const FeatureMap& f = a_.features;
    if (f.width == 1) return fill(PlaneBits(a_.keep, f, next_));
    fill(RowBits(a_.keep, next_ / f.period * f.width, f.width, next_ % f.width));
  }

  const ActDropout<T>& a_;
  int64_t next_, end_, first_ = 0;
  DrawnBits bits_;
  uint64_t words_[kTile / kWord + 1] = {};
};

// z = x + bias; null: none
template <class T>
void load_with_bias(const Tile& tile, const T* x, const compute_t<T>* bias, compute_t<T>* z) {
  using C = compute_t<T>;
  load_tile(tile, x, z);
  if (!bias) return;
  for_each_vector<C>(tile.pieces[0], [&](int i, auto, int) { store(z + i, load(z + i) + load(bias + i)); });
}

template <class T>
void act_dropout(const T* x, T* y, int64_t begin, int64_t end, const ActDropout<T>& a) {
  TileBuffer<compute_t<T>> z;
  DroppedTiles<T> tiles(a, begin, end);
  for (Tile tile; tiles(tile);) {
    load_with_bias(tile, x, tiles.bias(), z.values);
    if (a.act.kind != ActivationKind::identity) activate_all<T>(a.act, z.values, tile.size);
    if (a.residual) {
      store_dropped_sum(tile, z.values, a.residual, y, tiles.dropping());
    } else {
      store_dropped(tile, z.values, y, tiles.dropping());
    }
  }
}

template <class T>
void act_dropout_backward(const T* dy, const T* x, T* dx, int64_t begin, int64_t end, const ActDropout<T>& a) {
  TileBuffer<compute_t<T>> z, dz;
  DroppedTiles<T> tiles(a, begin, end);
  for (Tile tile; tiles(tile);) {
    load_dropped(tile, dy, dz.values, tiles.dropping());
    if (a.act.kind != ActivationKind::identity) {
      load_with_bias(tile, x, tiles.bias(), z.values);
      differentiate_all(a.act, z.values, dz.values, tile.size);
    }
    store_tile(tile, dz.values, dx);
  }
}

}  // namespace fastreg::cpu::FASTREG_ISA
