// Division by a number that is known before the launch: a multiplication and a shift (Granlund and Montgomery,
// "Division by invariant integers using multiplication", PLDI 1994). 64-bit division takes some hundred instructions.
#pragma once

#include "kernels/common/portable.h"

namespace fastreg {

FASTREG_HD uint64_t multiply_high(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return uint64_t((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

// Exact quotients of numbers below 2^63. divisor: at least 1, less than 2^63.
struct Divider {
  uint64_t divisor, multiplier;
  uint32_t shift;  // the least for which 2^shift >= divisor

  explicit Divider(int64_t d) : divisor(uint64_t(d)), shift(0) {
    while (uint64_t(1) << shift < divisor) ++shift;
    const uint64_t excess = (uint64_t(1) << shift) - divisor;
    multiplier = uint64_t((static_cast<unsigned __int128>(excess) << 64) / divisor) + 1;
  }

  FASTREG_HD uint64_t operator()(uint64_t n) const { return (multiply_high(n, multiplier) + n) >> shift; }
};

}  // namespace fastreg
