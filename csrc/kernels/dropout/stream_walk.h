// Keep bits of draws that stand anywhere in the stream: through an index map, and for features of several elements.
// One Philox call for each block of 8 draws that comes up, whatever the divisions cost elsewhere.
#pragma once

#include "kernels/common/divider.h"
#include "kernels/dropout/stream.h"

namespace fastreg {

// An IndexMap without divisions.
struct StreamMap {
  uint64_t first, row_stride;
  Divider row;

  explicit StreamMap(const IndexMap& map)
      : first(uint64_t(map.first)), row_stride(uint64_t(map.row_stride)), row(map.row) {}
};

// The keep bits of blocks of the stream. Neighbours often want the same one: the last is remembered.
class KeepBits {
 public:
  FASTREG_HD KeepBits(RandomState state, DropThreshold threshold) : state_(state), threshold_(threshold) {}

  // Bit e of the result: whether draw j + e is kept. count: at most 32.
  FASTREG_HD uint32_t of_draws(uint64_t j, int count, const StreamMap& map) {
    uint32_t bits = 0;
    for (int e = 0; e < count;) {
      const uint64_t row = j + e < map.row.divisor ? 0 : map.row(j + e), column = j + e - row * map.row.divisor;
      const uint64_t element = map.first + row * map.row_stride + column;
      const uint64_t rest_of_row = map.row.divisor - column;
      const int slot = int(element % kBlockElements);
      int length = kBlockElements - slot < count - e ? kBlockElements - slot : count - e;
      if (rest_of_row < uint64_t(length)) length = int(rest_of_row);
      bits |= ((of_block(element / kBlockElements) >> slot) & first_bits(length)) << e;
      e += length;
    }
    return bits;
  }

  static FASTREG_HD uint32_t first_bits(int count) { return (1u << count) - 1; }

 private:
  FASTREG_HD uint32_t of_block(uint64_t block) {
    if (block != block_) {
      block_ = block;
      bits_ = keep_bits(block, state_, threshold_);
    }
    return bits_;
  }

  RandomState state_;
  DropThreshold threshold_;
  uint64_t block_ = ~uint64_t(0);  // there is no such block
  uint32_t bits_ = 0;
};

// A FeatureMap without divisions.
struct FeatureWalk {
  Divider period, width;

  bool comes_round;  // within a period, elements `stride` apart share their draw

  FeatureWalk(const FeatureMap& map, int64_t stride)
      : period(map.period), width(map.width), comes_round(stride % map.width == 0) {}

  // Whether elements `stride` apart share their draw among the `count` from memory position j on.
  FASTREG_HD bool repeats(int64_t j, int count) const {
    if (!comes_round || j < 0) return false;
    return uint64_t(j) - period(uint64_t(j)) * period.divisor + uint64_t(count) <= period.divisor;
  }

  // Bit e of the result: whether the element at memory position j + e is kept. count: at most 8.
  FASTREG_HD uint32_t keep_bits_of(uint64_t j, int count, const StreamMap& map, KeepBits& keep) const {
    const bool one_draw = width.divisor == 1;  // for a whole period; else the period is rows of `width` draws
    const uint64_t row = one_draw ? period.divisor : width.divisor;
    uint64_t plane = period(j);
    uint64_t offset = j - plane * period.divisor;
    uint64_t column = one_draw ? offset : offset - width(offset) * width.divisor;
    uint32_t bits = 0;
    for (int e = 0; e < count; column = 0) {
      const int length = row - column < uint64_t(count - e) ? int(row - column) : count - e;
      const uint64_t draw = plane * width.divisor + (one_draw ? 0 : column);
      const uint32_t kept = keep.of_draws(draw, one_draw ? 1 : length, map);
      bits |= ((one_draw ? 0u - kept : kept) & KeepBits::first_bits(length)) << e;
      e += length;
      offset += uint64_t(length);
      if (offset == period.divisor) {
        offset = 0;
        ++plane;
      }
    }
    return bits;
  }
};

}  // namespace fastreg
