// Dropout, 64 elements at a time: eight Philox calls give a word of 64 keep bits, then a fused multiply-add, a choice
// and a store for each vector. Bytes moved per element: one read, one write.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

constexpr int kWord = 64;  // elements that one word of keep bits decides

// The keep bits of local elements (or draws) from `begin` on, a word at each call.
class DrawnBits {
 public:
  DrawnBits(const DropoutArguments& a, int64_t begin)
      : generator_(a.state, a.threshold),
        map_(a.map),
        drops_all_(a.threshold.drops_all()),
        local_(begin),
        left_in_row_(a.map.row - begin % a.map.row),
        start_(a.map(begin)) {}

  FASTREG_HD uint64_t operator()() {
    if (drops_all_) return 0;
    uint64_t keep = run();
    int have = kWord;
    if (left_in_row_ < kWord) have = int(left_in_row_);
    advance(have);
    // The rest of a word that ends beyond its row.
    for (; __builtin_expect(have < kWord, 0);) {
      const int count = left_in_row_ < kWord - have ? int(left_in_row_) : kWord - have;
      keep = (keep & ((uint64_t(1) << have) - 1)) | run() << have;
      advance(count);
      have += count;
    }
    return keep;
  }

 private:
  // 64 bits of the stream from element start_ on. Where blocks are split, two groups of eight blocks hold them, and
  // the second is the next word's first.
  FASTREG_HD uint64_t run() {
    const uint64_t block = start_ / kBlockElements;
    const int shift = int(start_ % kBlockElements);
    if (shift == 0) return generator_(block);
    const uint64_t first = block == ahead_block_ ? ahead_ : generator_(block);
    ahead_block_ = block + 8;
    ahead_ = generator_(ahead_block_);
    return first >> shift | ahead_ << (kWord - shift);
  }

  FASTREG_HD void advance(int count) {
    local_ += count;
    start_ += uint64_t(count);
    left_in_row_ -= count;
    if (left_in_row_ == 0) {
      left_in_row_ = map_.row;
      start_ = map_(local_);
    }
  }

  KeepGenerator generator_;
  IndexMap map_;
  bool drops_all_;
  int64_t local_, left_in_row_;
  uint64_t start_;                       // where local_ stands in the stream
  uint64_t ahead_block_ = ~uint64_t(0);  // ahead_ holds the bits of eight blocks from here on; no block to begin with
  uint64_t ahead_ = 0;
};

// What becomes of 64 elements, given their keep bits. With a residual, which then stands for shift and fill:
// y = keep ? fma(x, scale, residual) : residual.
template <class T, bool kResidual>
class Transform {
 public:
  explicit Transform(const DropTransform& t)
      : scale_(broadcast(C(t.scale))), shift_(broadcast(C(t.shift))), fill_(broadcast(C(t.fill))) {}

  FASTREG_HD void operator()(const T* x, const T* residual, T* y, uint64_t keep) const {
    if (keep == 0) {
      for (int i = 0; i < kWord; i += kLanes) store(y + i, kResidual ? load(residual + i) : fill_);
      return;
    }
    for (int i = 0; i < kWord; i += kLanes) {
      const V other = kResidual ? load(residual + i) : fill_;
      const V kept = multiply_add(load(x + i), scale_, kResidual ? other : shift_);
      store(y + i, choose(uint32_t(keep >> i), kept, other));
    }
  }

  // The same for the first `count`.
  void part(const T* x, const T* residual, T* y, uint64_t keep, int64_t count) const {
    const size_t bytes = size_t(count) * sizeof(T);
    T from[kWord] = {}, add[kWord] = {};
    memcpy(static_cast<void*>(from), x, bytes);
    if (kResidual) memcpy(static_cast<void*>(add), residual, bytes);
    (*this)(from, add, from, keep);
    memcpy(static_cast<void*>(y), from, bytes);
  }

 private:
  using C = compute_t<T>;
  using V = decltype(broadcast(C()));
  static constexpr int kLanes = int(sizeof(V) / sizeof(C));

  V scale_, shift_, fill_;
};

// Elements [begin, end), `bits` giving their keep bits word by word.
template <bool kResidual, class T, class Bits>
FASTREG_HD void transform_range(const T* x, const T* residual, T* y, int64_t begin, int64_t end, Bits bits,
                                const DropTransform& t) {
  const Transform<T, kResidual> transform(t);
  const auto residual_at = [&](int64_t i) { return kResidual ? residual + i : nullptr; };
  int64_t i = begin;
  for (; i + kWord <= end; i += kWord) transform(x + i, residual_at(i), y + i, bits());
  if (i < end) transform.part(x + i, residual_at(i), y + i, bits(), end - i);
}

template <class T>
void dropout(const T* x, T* y, int64_t begin, int64_t end, const DropoutArguments& a) {
  transform_range<false, T>(x, nullptr, y, begin, end, DrawnBits(a, begin), a.transform);
}

}  // namespace fastreg::cpu::FASTREG_ISA
