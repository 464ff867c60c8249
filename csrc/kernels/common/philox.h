// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#pragma once

#include "kernels/common/portable.h"

namespace fastreg {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKeyStep0 = 0x9E3779B9u, kPhiloxKeyStep1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

struct PhiloxWords {
  uint32_t word[4];
};

struct Product {
  uint32_t low, high;
};

FASTREG_HD Product multiply_wide(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  // Spelled out: from the 64-bit product of C++ nvcc 13 makes a multiplication and an addition of zero.
  Product p;
  asm("{ .reg .u64 t; mul.wide.u32 t, %2, %3; mov.b64 {%0, %1}, t; }" : "=r"(p.low), "=r"(p.high) : "r"(a), "r"(b));
  return p;
#else
  const uint64_t product = uint64_t(a) * b;
  return Product{uint32_t(product), uint32_t(product >> 32)};
#endif
}

// The 128 random bits of counter (low half, high half) under a 64-bit key.
FASTREG_HD PhiloxWords philox(uint64_t counter_low, uint64_t counter_high, uint64_t key) {
  uint32_t c0 = uint32_t(counter_low), c1 = uint32_t(counter_low >> 32);
  uint32_t c2 = uint32_t(counter_high), c3 = uint32_t(counter_high >> 32);
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const Product product0 = multiply_wide(kPhiloxMultiplier0, c0);
    const Product product1 = multiply_wide(kPhiloxMultiplier1, c2);
    c0 = product1.high ^ c1 ^ k0;
    c1 = product1.low;
    c2 = product0.high ^ c3 ^ k1;
    c3 = product0.low;
    k0 += kPhiloxKeyStep0;
    k1 += kPhiloxKeyStep1;
  }
  return PhiloxWords{{c0, c1, c2, c3}};
}

}  // namespace fastreg
