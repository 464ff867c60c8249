// Keywords, vector types, built-in variables, shared memory and the block barrier.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// A kernel that uses these directly would share one variable between all blocks: see the two macros below.
#define __shared__ static_assert(false, "declare shared memory with FASTREG_SHARED or FASTREG_DYNAMIC_SHARED")
#define __constant__ static_assert(false, "constant memory is not modelled")

// Vector types, with the alignment that CUDA gives them: it decides what counts as one access.
struct alignas(2) uchar2 {
  unsigned char x, y;
};
struct alignas(4) uchar4 {
  unsigned char x, y, z, w;
};
struct alignas(4) ushort2 {
  unsigned short x, y;
};
struct alignas(8) ushort4 {
  unsigned short x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct int3 {
  int x, y, z;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct float3 {
  float x, y, z;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};

inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

// The executor sets these whenever it switches to another thread. Kernels only read them.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace host_executor {

// The calling block's copy of a shared variable, told apart by the address of its key.
void* static_shared(const void* key, const char* name, size_t bytes, size_t alignment);
void* dynamic_shared();

enum class BlockBarrier { plain, any, all, count };
// Waits for all threads of the block; returns their predicates, combined as the barrier says.
int block_barrier(BlockBarrier barrier, bool predicate);

}  // namespace host_executor

#define FASTREG_SHARED(T, name, count)         \
  static const char fastreg_key_of_##name = 0; \
  T* const name =                              \
      static_cast<T*>(host_executor::static_shared(&fastreg_key_of_##name, #name, sizeof(T) * (count), alignof(T)))
#define FASTREG_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(host_executor::dynamic_shared())

inline void __syncthreads() { host_executor::block_barrier(host_executor::BlockBarrier::plain, false); }
inline int __syncthreads_or(int predicate) {
  return host_executor::block_barrier(host_executor::BlockBarrier::any, predicate != 0);
}
inline int __syncthreads_and(int predicate) {
  return host_executor::block_barrier(host_executor::BlockBarrier::all, predicate != 0);
}
inline int __syncthreads_count(int predicate) {
  return host_executor::block_barrier(host_executor::BlockBarrier::count, predicate != 0);
}
