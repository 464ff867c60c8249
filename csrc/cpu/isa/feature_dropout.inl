// Feature dropout: the draws, a bit each, are made before; here they are spread over the elements, again a word of 64
// at a time. Bytes moved per element: one write, one read where something of the word is kept, and one of a residual.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

inline void keep_bits(uint64_t* words, int64_t begin, int64_t end, const DropoutArguments& a) {
  DrawnBits bits(a, begin);
  for (int64_t i = begin; i < end; i += kWord) *words++ = bits();
}

// Bits [i, i + 64) of an array.
FASTREG_HD uint64_t bits_from(const uint64_t* words, int64_t i) {
  const int shift = int(i % kWord);
  return words[i / kWord] >> shift | words[i / kWord + 1] << 1 << (kWord - 1 - shift);
}

FASTREG_HD uint64_t low_bits(int64_t count) { return count < kWord ? (uint64_t(1) << count) - 1 : ~uint64_t(0); }

// width = 1: draw m decides the elements [m period, (m + 1) period).
class PlaneBits {
 public:
  PlaneBits(const uint64_t* keep, FeatureMap features, int64_t begin)
      : keep_(keep), period_(features.period), draw_(begin / period_), left_(period_ - begin % period_) {}

  FASTREG_HD uint64_t operator()() {
    uint64_t word = plane();
    int64_t have = left_;
    for (; have < kWord; have += period_) {
      ++draw_;
      word = (word & low_bits(have)) | plane() << have;
    }
    left_ = have - kWord;
    if (left_ == 0) {
      ++draw_;
      left_ = period_;
    }
    return word;
  }

 private:
  FASTREG_HD uint64_t plane() const { return ~uint64_t(0) * ((keep_[draw_ / kWord] >> (draw_ % kWord)) & 1); }

  const uint64_t* keep_;
  int64_t period_, draw_;
  int64_t left_;  // elements of the plane of draw_ that are still to come
};

// Within one period: rows of `width` elements share the draws from `first` on.
class RowBits {
 public:
  RowBits(const uint64_t* keep, int64_t first, int64_t width, int64_t column)
      : keep_(keep), first_(first), width_(width), column_(column), step_(kWord % width) {
    if (width >= kWord) return;
    narrow_ = bits_from(keep, first) & low_bits(width);
    for (int64_t have = width; have < 2 * kWord; have *= 2) narrow_ |= narrow_ << have;
  }

  FASTREG_HD uint64_t operator()() {
    const uint64_t word = width_ < kWord ? uint64_t(narrow_ >> column_) : wide();
    column_ += step_;
    if (column_ >= width_) column_ -= width_;
    return word;
  }

 private:
  FASTREG_HD uint64_t wide() const {
    const uint64_t word = bits_from(keep_, first_ + column_);
    const int64_t have = width_ - column_;
    return have < kWord ? (word & low_bits(have)) | bits_from(keep_, first_) << have : word;
  }

  const uint64_t* keep_;
  int64_t first_, width_, column_, step_;
  unsigned __int128 narrow_ = 0;  // rows of less than 64, repeated
};

template <bool kResidual, class T>
void spread(const T* x, const T* residual, T* y, int64_t begin, int64_t end, const uint64_t* keep, FeatureMap f,
            const DropTransform& t) {
  if (f.width == 1) {
    transform_range<kResidual>(x, residual, y, begin, end, PlaneBits(keep, f, begin), t);
    return;
  }
  for (int64_t i = begin; i < end;) {
    const int64_t group = i / f.period, next = (group + 1) * f.period, stop = next < end ? next : end;
    transform_range<kResidual>(x, residual, y, i, stop, RowBits(keep, group * f.width, f.width, i % f.width), t);
    i = stop;
  }
}

template <class T>
void feature_dropout(const T* x, const T* residual, T* y, int64_t begin, int64_t end, const uint64_t* keep,
                     const FeatureMap& features, const DropTransform& t) {
  if (residual) {
    spread<true>(x, residual, y, begin, end, keep, features, t);
  } else {
    spread<false>(x, residual, y, begin, end, keep, features, t);
  }
}

}  // namespace fastreg::cpu::FASTREG_ISA
