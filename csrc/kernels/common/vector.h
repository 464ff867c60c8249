// Vectors of elements: what a thread moves in one access, and computes with.
#pragma once

#include "kernels/common/types.h"

namespace fastreg {

// N elements that move as one aligned access of N * sizeof(T) bytes (at most 16).
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T element[N];
};

// Elements of T in the widest access, and whether an array can be accessed so.
template <class T>
constexpr int kVector = 16 / int(sizeof(T));
inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// The elements as values to compute with.
template <class T, int N>
struct Values {
  compute_t<T> value[N];
};

template <class T, int N>
FASTREG_HD Values<T, N> to_compute(const Vector<T, N>& v) {
  Values<T, N> x;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int i = 0; i < N; ++i) x.value[i] = to_compute(v.element[i]);
  return x;
}

template <class T, int N>
FASTREG_HD Vector<T, N> from_compute(const Values<T, N>& x) {
  Vector<T, N> v;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int i = 0; i < N; ++i) v.element[i] = from_compute<T>(x.value[i]);
  return v;
}

#if defined(__CUDA_ARCH__)

// 16-bit types by pairs: the hardware converts two at a time, and two share a register.
namespace detail {
__device__ __forceinline__ float2 pair_to_float(bfloat16, uint32_t bits) {
  return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xFFFF0000u));
}
__device__ __forceinline__ float2 pair_to_float(half, uint32_t bits) { return __half22float2(bit_cast<__half2>(bits)); }
__device__ __forceinline__ uint32_t pair_from_float(bfloat16, float low, float high) {
  return bit_cast<uint32_t>(__floats2bfloat162_rn(low, high));
}
__device__ __forceinline__ uint32_t pair_from_float(half, float low, float high) {
  return bit_cast<uint32_t>(__floats2half2_rn(low, high));
}

template <int N>
struct Words {
  uint32_t word[N];
};

template <class T>
__device__ __forceinline__ Values<T, 8> pairs_to_compute(const Vector<T, 8>& v) {
  const auto words = bit_cast<Words<4>>(v);
  Values<T, 8> x;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = pair_to_float(T{}, words.word[i]);
    x.value[2 * i] = pair.x;
    x.value[2 * i + 1] = pair.y;
  }
  return x;
}
template <class T>
__device__ __forceinline__ Vector<T, 8> pairs_from_compute(const Values<T, 8>& x) {
  Words<4> words;
#pragma unroll
  for (int i = 0; i < 4; ++i) words.word[i] = pair_from_float(T{}, x.value[2 * i], x.value[2 * i + 1]);
  return bit_cast<Vector<T, 8>>(words);
}
}  // namespace detail

__device__ __forceinline__ Values<half, 8> to_compute(const Vector<half, 8>& v) { return detail::pairs_to_compute(v); }
__device__ __forceinline__ Values<bfloat16, 8> to_compute(const Vector<bfloat16, 8>& v) {
  return detail::pairs_to_compute(v);
}
__device__ __forceinline__ Vector<half, 8> from_compute(const Values<half, 8>& x) {
  return detail::pairs_from_compute(x);
}
__device__ __forceinline__ Vector<bfloat16, 8> from_compute(const Values<bfloat16, 8>& x) {
  return detail::pairs_from_compute(x);
}

#endif

}  // namespace fastreg
