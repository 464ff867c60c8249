// Reduction of one result per lane, of any type of 4-byte words with merge(R, R), in an order fixed by the lanes.
#pragma once

#include "kernels/common/device.h"

namespace fastreg {

template <int N>
struct ShuffledWords {
  unsigned word[N];
};

// The value of the lane `lanes` above.
template <class R>
__device__ __forceinline__ R from_lane_above(const R& r, int lanes) {
  auto words = bit_cast<ShuffledWords<int(sizeof(R) / sizeof(unsigned))>>(r);
  for (unsigned& word : words.word) word = __shfl_down_sync(0xFFFFFFFFu, word, lanes);
  return bit_cast<R>(words);
}

// Lane 0's result is the merger of all lanes'. Whole warps call it.
template <class R>
__device__ __forceinline__ R merge_lanes(R r) {
#pragma unroll
  for (int half = 16; half > 0; half /= 2) r = merge(r, from_lane_above(r, half));
  return r;
}

}  // namespace fastreg
