// Warp-wide functions. Every mask is checked: the caller must be in it, its lanes must be alive, and they must agree on
// the function. There is no __activemask(): what it returns on a device is not defined by the program.
#pragma once

#include <cstdint>
#include <cstring>

namespace host_executor {

enum class WarpFunction {
  sync,
  shfl,
  shfl_xor,
  shfl_up,
  shfl_down,
  vote,
  reduce_add,
  reduce_min,
  reduce_max,
  reduce_or
};

// This thread's position in its warp.
int lane();
// Waits for the lanes of the mask and orders their memory accesses.
void warp_barrier(unsigned mask);
// Waits for the lanes of the mask; returns the value that `source` brought. Orders nothing.
uint64_t warp_shuffle(WarpFunction function, unsigned mask, uint64_t value, int source);
// The lanes of the mask whose predicate holds.
unsigned warp_vote(unsigned mask, bool predicate);
unsigned warp_reduce(WarpFunction function, unsigned mask, unsigned value);

template <class T>
T shuffle(WarpFunction function, unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_shuffle(function, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// The source lane, or the caller itself where that would lie outside of the caller's group of `width` lanes.
inline int within_group(int source, int width) {
  return source >= 0 && source / width == lane() / width ? source : lane();
}

}  // namespace host_executor

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { host_executor::warp_barrier(mask); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = host_executor::lane() / width * width;
  return host_executor::shuffle(host_executor::WarpFunction::shfl, mask, value, first + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  // Unlike the others, a butterfly may read from groups before its own.
  const int source = host_executor::lane() ^ lanes;
  const bool later_group = source / width > host_executor::lane() / width;
  return host_executor::shuffle(host_executor::WarpFunction::shfl_xor, mask, value,
                                later_group ? host_executor::lane() : source);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return host_executor::shuffle(host_executor::WarpFunction::shfl_up, mask, value,
                                host_executor::within_group(host_executor::lane() - int(delta), width));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return host_executor::shuffle(host_executor::WarpFunction::shfl_down, mask, value,
                                host_executor::within_group(host_executor::lane() + int(delta), width));
}

inline unsigned __ballot_sync(unsigned mask, int predicate) { return host_executor::warp_vote(mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return host_executor::warp_vote(mask, predicate != 0) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return host_executor::warp_vote(mask, predicate != 0) == mask; }

inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return host_executor::warp_reduce(host_executor::WarpFunction::reduce_add, mask, value);
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return host_executor::warp_reduce(host_executor::WarpFunction::reduce_min, mask, value);
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return host_executor::warp_reduce(host_executor::WarpFunction::reduce_max, mask, value);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return host_executor::warp_reduce(host_executor::WarpFunction::reduce_or, mask, value);
}
