// Global memory access of all kernels: one place to widen, hint and count it.
#pragma once

#include "kernels/common/device.h"
#include "kernels/common/vector.h"

namespace fastreg {

// A value of which the compiler knows nothing: what follows from it is computed here, and takes no register before.
__device__ __forceinline__ int computed_here(int value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

#if defined(__CUDACC__)

namespace detail {
template <int Bytes>
struct raw;
template <>
struct raw<16> {
  using type = uint4;
};
template <>
struct raw<8> {
  using type = uint2;
};
template <>
struct raw<4> {
  using type = unsigned int;
};
template <>
struct raw<2> {
  using type = unsigned short;
};
template <>
struct raw<1> {
  using type = unsigned char;
};
}  // namespace detail

// Read data that this kernel will not read again: it should not displace what will be.
template <class V>
__device__ __forceinline__ V load_streaming(const V* address) {
  using raw = typename detail::raw<sizeof(V)>::type;
  return bit_cast<V>(__ldcs(reinterpret_cast<const raw*>(address)));
}

template <class V>
__device__ __forceinline__ V load(const V* address) {
  using raw = typename detail::raw<sizeof(V)>::type;
  return bit_cast<V>(*reinterpret_cast<const raw*>(address));
}

// Write data that this kernel will not read again.
template <class V>
__device__ __forceinline__ void store_streaming(V* address, const V& value) {
  using raw = typename detail::raw<sizeof(V)>::type;
  __stcs(reinterpret_cast<raw*>(address), bit_cast<raw>(value));
}

template <class V>
__device__ __forceinline__ void store(V* address, const V& value) {
  using raw = typename detail::raw<sizeof(V)>::type;
  *reinterpret_cast<raw*>(address) = bit_cast<raw>(value);
}

// Read a value that another block of this launch wrote (past a fence or barrier): never from this SM's own cache.
template <class V>
__device__ __forceinline__ V load_coherent(const V* address) {
  using raw = typename detail::raw<sizeof(V)>::type;
  return bit_cast<V>(__ldcg(reinterpret_cast<const raw*>(address)));
}

#else  // the host executor counts and checks each access

template <class V>
V load_streaming(const V* address) {
  return host_executor::load(address);
}
template <class V>
V load(const V* address) {
  return host_executor::load(address);
}
template <class V>
V load_coherent(const V* address) {
  return host_executor::load(address);
}
template <class V>
void store_streaming(V* address, const V& value) {
  host_executor::store(address, value);
}
template <class V>
void store(V* address, const V& value) {
  host_executor::store(address, value);
}

#endif

}  // namespace fastreg
