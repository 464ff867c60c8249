// The CPU kernels for x86-64 with AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)

#if !defined(__clang__)
// GCC's own AVX-512 headers start from registers that they mean to leave undefined (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

// Everything from outside comes before the target is raised: what these headers define is shared by all files, and
// must run on every machine.
#include <immintrin.h>

#include "cpu/isa/kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")
#endif

#define FASTREG_ISA avx512
#include "cpu/isa/simd_avx512.h"
#include "cpu/isa/table.inl"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
