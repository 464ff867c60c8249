// What the dropout kernels share: the random state, the transform, and which elements a warp moves.
#pragma once

#include "kernels/common/device.h"
#include "kernels/common/memory.h"
#include "kernels/dropout/dropout.h"

namespace fastreg {

constexpr int kWarp = 32;

// The state of this launch; one of its threads, its first, records it where the call wants to know.
__device__ __forceinline__ RandomState read_state(const StateSource& source, bool first) {
  const RandomState state = {
      source.seed_pointer ? uint64_t(load(source.seed_pointer)) : source.seed,
      source.offset + (source.offset_pointer ? uint64_t(load(source.offset_pointer)) : 0),
  };
  if (source.used != nullptr && first) {
    store(source.used, int64_t(state.seed));
    store(source.used + 1, int64_t(state.offset));
  }
  return state;
}

__device__ __forceinline__ RandomState read_state(const StateSource& source) {
  return read_state(source, blockIdx.x == 0 && threadIdx.x == 0);
}

// A DropTransform in the compute type.
template <class C>
struct Transform {
  C scale, shift, fill;

  explicit Transform(const DropTransform& t) : scale(C(t.scale)), shift(C(t.shift)), fill(C(t.fill)) {}
};

// v with the elements transformed that keep(e) says to keep, and the filling for the others.
template <class T, int V, class Keep>
__device__ __forceinline__ Vector<T, V> dropped(const Vector<T, V>& v, const Transform<compute_t<T>>& transform,
                                                Keep keep) {
  Values<T, V> x = to_compute(v);
#pragma unroll
  for (int e = 0; e < V; ++e) {
    const compute_t<T> kept = multiply_add(x.value[e], transform.scale, transform.shift);
    x.value[e] = keep(e) ? kept : transform.fill;
  }
  return from_compute(x);
}

// Bit e: whether element offset + e is kept, of V elements of the stream in one block.
template <int V>
__device__ __forceinline__ uint32_t keep_bits_of_vector(int64_t offset, RandomState state, DropThreshold threshold) {
  static_assert(kBlockElements % V == 0, "a vector lies in one block");
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(state.seed));  // in a loop the keys of all rounds would wait in registers
#endif
  return keep_bits(uint64_t(offset) / kBlockElements, state, threshold) >> offset % kBlockElements;
}

// The elements of a tile that are there, counted from its first: begin to end.
struct Part {
  int begin, end;

  __device__ __forceinline__ bool holds(int i, int count) const { return begin <= i && i + count <= end; }
};

// Elements begin to end, counted from the last 16-byte boundary at or before the first one (or from the first one,
// where they are moved one by one).
struct Span {
  int64_t begin, end;

  // Of the tile of `size` elements from `first` on. Offsets within it are 32-bit.
  __device__ __forceinline__ Part part(int64_t first, int size) const {
    const int64_t rest = end - first;
    return {begin <= first ? 0 : int(begin - first), rest < size ? int(rest) : size};
  }
};

// Elements from the last 16-byte boundary to the pointer.
template <class T>
int64_t elements_past_boundary(const T* pointer) {
  return int64_t(reinterpret_cast<uintptr_t>(pointer) % 16 / sizeof(T));
}

// The warps of a grid, counted.
__device__ __forceinline__ int64_t warp_index() {
  return int64_t(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
}
__device__ __forceinline__ int64_t warp_count() { return int64_t(gridDim.x) * (blockDim.x / kWarp); }

// A grid of as many warps as there are pieces of work, or four times as many as fit on the device at once.
inline LaunchConfig config_for_warps(int64_t pieces, const Device& device) {
  const int64_t per_block = device.threads / kWarp;
  const int64_t wanted = (pieces + per_block - 1) / per_block;
  const int64_t most = int64_t(device.multiprocessors) * (2048 / device.threads) * 4;
  LaunchConfig config;
  config.grid = dim3(unsigned(wanted < most ? wanted : most));
  config.block = dim3(unsigned(device.threads));
  config.stream = device.stream;
  return config;
}

}  // namespace fastreg
