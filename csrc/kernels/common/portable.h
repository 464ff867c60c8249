// What lets one source serve nvcc (device and host) and a plain C++ compiler (CPU backend, tests).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FASTREG_HD __host__ __device__ __forceinline__
#else
// Always inlined, not merely `inline`: the CPU backend compiles these functions once per instruction set, and a
// shared out-of-line copy could be the one that the machine cannot run.
#define FASTREG_HD inline __attribute__((always_inline))
#endif

namespace fastreg {

template <class To, class From>
FASTREG_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast: sizes differ");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// a * b + c, rounded once, whatever the compiler makes of sums and products.
FASTREG_HD float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
FASTREG_HD double multiply_add(double a, double b, double c) { return std::fma(a, b, c); }

}  // namespace fastreg
