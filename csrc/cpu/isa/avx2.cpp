// The CPU kernels for x86-64 with AVX2, FMA and F16C.
#if defined(__x86_64__)

// Everything from outside comes before the target is raised: what these headers define is shared by all files, and
// must run on every machine.
#include <immintrin.h>

#include "cpu/isa/kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif

#define FASTREG_ISA avx2
#include "cpu/isa/simd_avx2.h"
#include "cpu/isa/table.inl"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
