// The dropout stream: which elements a call drops, as a pure function of the random state and the element's index.
// The same on every device. Defined in terms of blocks of 8 elements:
//   block b, call c  ->  Philox4x32-10, key = seed, counter = (c, b): 128 bits, eight 16-bit draws u[0..8)
//   element 8b + s is dropped  iff  2^16 u[s] + v[s] < T,  v the draws of call c + 1,  T = floor(p 2^32 + 1/2).
// v matters only where u[s] equals T's high half (probability 2^-16), so it is computed only then.
#pragma once

#include "kernels/common/philox.h"

namespace fastreg {

constexpr int kBlockElements = 8;  // elements per Philox call
constexpr int kStateAdvance = 8;   // how far one call moves a generator's offset: two Philox calls of four draws

// The random state of one dropout call.
struct RandomState {
  uint64_t seed;
  uint64_t offset;
};

// Where a tensor's elements stand in the stream: element j is element first + (j div row) row_stride + j mod row.
struct IndexMap {
  int64_t first, row, row_stride;

  FASTREG_HD uint64_t operator()(int64_t j) const {
    const uint64_t i = uint64_t(j), r = uint64_t(row);
    if (i < r) return uint64_t(first) + i;
    return uint64_t(first) + i / r * uint64_t(row_stride) + i % r;
  }
};

// The probability of dropping, in units of 2^-32, as 2^16 high + low.
struct DropThreshold {
  uint32_t high;  // 0 .. 2^16 - 1
  uint32_t low;   // 0 .. 2^16: 2^16 where every element is dropped

  FASTREG_HD bool drops_all() const { return low > 0xFFFFu; }
};

inline DropThreshold drop_threshold(double p) {
  const uint64_t t = uint64_t(p * 4294967296.0 + 0.5);
  return t >> 32 ? DropThreshold{0xFFFFu, 0x10000u} : DropThreshold{uint32_t(t >> 16), uint32_t(t & 0xFFFFu)};
}

// What kept elements are multiplied with. All elements are dropped where p rounds to 1: any finite value does.
inline double keep_scale(double p) { return p < 1.0 ? 1.0 / (1.0 - p) : 0.0; }

// What becomes of an element: y = keep ? fma(x, scale, shift) : fill, each number first rounded to the compute type.
// Adding -0.0 leaves every product as it is, zeros and their signs included.
struct DropTransform {
  double scale = 1.0, shift = -0.0, fill = 0.0;
};

// All that one call says beside its tensors. State: RandomState, or where to find one.
template <class State>
struct DropoutCall {
  State state;
  DropThreshold threshold;
  DropTransform transform;
  IndexMap map;
};

// Which draw decides the element at memory position j of a tensor that draws once per feature:
// draw (j div period) width + j mod width. Contiguous [.., size]: period = size, width = 1. Channels-last
// [N, size, C]: period = size C, width = C.
struct FeatureMap {
  int64_t period, width;

  FASTREG_HD uint64_t operator()(int64_t j) const {
    const uint64_t i = uint64_t(j), w = uint64_t(width);
    return i / uint64_t(period) * w + i % w;
  }
};

FASTREG_HD uint32_t draw(const PhiloxWords& words, int slot) {
  return (words.word[slot / 2] >> (16 * (slot % 2))) & 0xFFFFu;
}

// Whether u[slot] is at least the threshold's high half: kept, unless it is a tie.
FASTREG_HD bool at_least(const PhiloxWords& words, int slot, DropThreshold threshold) {
  const uint32_t word = words.word[slot / 2];
  return (slot % 2 ? word : word << 16) >= threshold.high << 16;
}

// Whether any of the eight draws equals the threshold's high half, two draws at a time: a half word is zero iff taking
// one from it borrows into a bit that it does not have.
FASTREG_HD bool any_tie(const PhiloxWords& words, DropThreshold threshold) {
  const uint32_t twice = threshold.high << 16 | threshold.high;
  uint32_t borrow = 0;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int i = 0; i < 4; ++i) {
    const uint32_t difference = words.word[i] ^ twice;
    borrow |= (difference - 0x00010001u) & ~difference;
  }
  return (borrow & 0x80008000u) != 0;
}

// Of a block without ties: bit s is set where u[s] is kept.
FASTREG_HD uint32_t keep_bits_untied(const PhiloxWords& words, DropThreshold threshold) {
  uint32_t keep = 0;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int slot = 0; slot < kBlockElements; ++slot) keep |= uint32_t(at_least(words, slot, threshold)) << slot;
  return keep;
}

// Of any block, given its draws u.
FASTREG_HD uint32_t keep_bits_tied(const PhiloxWords& words, uint64_t block, RandomState state,
                                   DropThreshold threshold) {
  const PhiloxWords second = philox(state.offset / 4 + 1, block, state.seed);
  uint32_t keep = 0;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int slot = 0; slot < kBlockElements; ++slot) {
    const uint32_t u = draw(words, slot), v = draw(second, slot);
    keep |= uint32_t(u > threshold.high || (u == threshold.high && v >= threshold.low)) << slot;
  }
  return keep;
}

// Bit s is set where element 8 block + s is kept.
FASTREG_HD uint32_t keep_bits(uint64_t block, RandomState state, DropThreshold threshold) {
  const PhiloxWords words = philox(state.offset / 4, block, state.seed);
  return any_tie(words, threshold) ? keep_bits_tied(words, block, state, threshold)
                                   : keep_bits_untied(words, threshold);
}

}  // namespace fastreg
