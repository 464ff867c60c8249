// Vectors of 32 bytes. See simd_baseline.h for what each function is to do.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

using f32 = __m256;
using f64 = __m256d;
constexpr int kF32 = 8, kF64 = 4;

FASTREG_HD f32 broadcast(float x) { return _mm256_set1_ps(x); }
FASTREG_HD f64 broadcast(double x) { return _mm256_set1_pd(x); }

// Of two operands of which one is NaN these are the second.
FASTREG_HD f32 at_most(f32 x, float high) { return _mm256_min_ps(broadcast(high), x); }
FASTREG_HD f64 at_most(f64 x, double high) { return _mm256_min_pd(broadcast(high), x); }
FASTREG_HD f32 at_least(f32 x, float low) { return _mm256_max_ps(broadcast(low), x); }
FASTREG_HD f64 at_least(f64 x, double low) { return _mm256_max_pd(broadcast(low), x); }

FASTREG_HD f32 load(const float* p) { return _mm256_loadu_ps(p); }
FASTREG_HD f64 load(const double* p) { return _mm256_loadu_pd(p); }
FASTREG_HD f32 load(const half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
FASTREG_HD f32 load(const bfloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

FASTREG_HD void store(float* p, f32 v) { _mm256_storeu_ps(p, v); }
FASTREG_HD void store(double* p, f64 v) { _mm256_storeu_pd(p, v); }
FASTREG_HD void store(half* p, f32 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
FASTREG_HD void store(bfloat16* p, f32 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i rounded = _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_set1_epi32(0x7FC0), nan);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}

FASTREG_HD f32 multiply_add(f32 a, f32 b, f32 c) { return _mm256_fmadd_ps(a, b, c); }
FASTREG_HD f64 multiply_add(f64 a, f64 b, f64 c) { return _mm256_fmadd_pd(a, b, c); }

FASTREG_HD f32 choose(uint32_t bits, f32 a, f32 b) {
  const __m256i lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i chosen = _mm256_and_si256(_mm256_set1_epi32(int(bits)), lane_bit);
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(chosen, lane_bit)));
}
FASTREG_HD f64 choose(uint32_t bits, f64 a, f64 b) {
  const __m256i lane_bit = _mm256_setr_epi64x(1, 2, 4, 8);
  const __m256i chosen = _mm256_and_si256(_mm256_set1_epi64x(int64_t(bits)), lane_bit);
  return _mm256_blendv_pd(b, a, _mm256_castsi256_pd(_mm256_cmpeq_epi64(chosen, lane_bit)));
}

using f32_comparison = int32_t __attribute__((vector_size(32)));
using f64_comparison = int64_t __attribute__((vector_size(32)));

// v 2^n. 2^n alone may be out of range.
FASTREG_HD __m256 power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
FASTREG_HD f32 scaled(f32 v, f32 n) {
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  return v * power_of_two(half) * power_of_two(_mm256_sub_epi32(whole, half));
}

FASTREG_HD uint32_t lane_bits(f32_comparison v) { return uint32_t(_mm256_movemask_ps(__m256(v))); }
FASTREG_HD uint32_t lane_bits(f64_comparison v) { return uint32_t(_mm256_movemask_pd(__m256d(v))); }

FASTREG_HD f64 widen(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
FASTREG_HD f64 widen(const double* p) { return load(p); }
FASTREG_HD f64 widen(const half* p) {
  return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
FASTREG_HD f64 widen(const bfloat16* p) {
  const __m128i bits = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(bits, 16)));
}

// Masked accesses, where simd_partial.h would go through a buffer.
FASTREG_HD __m256i first_lanes(int64_t count, float) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FASTREG_HD __m256i first_lanes(int64_t count, double) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
FASTREG_HD f32 load_first(const float* p, int64_t count) { return _mm256_maskload_ps(p, first_lanes(count, 0.0f)); }
FASTREG_HD f64 load_first(const double* p, int64_t count) { return _mm256_maskload_pd(p, first_lanes(count, 0.0)); }
FASTREG_HD void store_first(float* p, int64_t count, f32 v) { _mm256_maskstore_ps(p, first_lanes(count, 0.0f), v); }
FASTREG_HD void store_first(double* p, int64_t count, f64 v) { _mm256_maskstore_pd(p, first_lanes(count, 0.0), v); }

// Four Philox calls in the four 64-bit lanes, as in simd_avx512.h; two such groups make the eight blocks.
class KeepGenerator {
 public:
  KeepGenerator(RandomState state, DropThreshold threshold)
      : state_(state), high_(_mm256_set1_epi16(short(threshold.high))), low_(_mm256_set1_epi16(short(threshold.low))) {}

  // Bit 8 j + s is set where element s of block first + j is kept, j = 0 .. 7.
  FASTREG_HD uint64_t operator()(uint64_t first) const {
    return uint64_t(four_blocks(first)) | uint64_t(four_blocks(first + 4)) << 32;
  }

 private:
  FASTREG_HD uint32_t four_blocks(uint64_t first) const {
    __m256i u[2];
    draws(first, state_.offset / 4, u);
    const uint32_t keep = mask32(at_least(u[0], high_), at_least(u[1], high_));
    const uint32_t tie = mask32(_mm256_cmpeq_epi16(u[0], high_), _mm256_cmpeq_epi16(u[1], high_));
    return __builtin_expect(tie != 0, 0) ? keep & ~(tie & lost_ties(first)) : keep;
  }

  __attribute__((noinline)) uint32_t lost_ties(uint64_t first) const {
    __m256i v[2];
    draws(first, state_.offset / 4 + 1, v);
    return ~mask32(at_least(v[0], low_), at_least(v[1], low_));
  }

  FASTREG_HD static __m256i at_least(__m256i u, __m256i bound) {
    return _mm256_cmpeq_epi16(_mm256_max_epu16(u, bound), u);
  }

  // One bit per 16-bit lane of two masks that hold blocks (0, 2) and (1, 3).
  FASTREG_HD static uint32_t mask32(__m256i a, __m256i b) {
    return uint32_t(_mm256_movemask_epi8(_mm256_packs_epi16(a, b)));
  }

  // The draws of blocks first + (0, 2) and first + (1, 3), one per 128-bit lane: mask32 puts them in order.
  FASTREG_HD void draws(uint64_t first, uint64_t call, __m256i out[2]) const {
    const __m256i block = _mm256_add_epi64(_mm256_set1_epi64x(int64_t(first)), _mm256_set_epi64x(3, 2, 1, 0));
    const __m256i multiplier0 = _mm256_set1_epi64x(kPhiloxMultiplier0),
                  multiplier1 = _mm256_set1_epi64x(kPhiloxMultiplier1);
    __m256i c0 = _mm256_set1_epi64x(uint32_t(call)), c1 = _mm256_set1_epi64x(int64_t(call >> 32));
    __m256i c2 = block, c3 = _mm256_srli_epi64(block, 32);
    uint32_t k0 = uint32_t(state_.seed), k1 = uint32_t(state_.seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const __m256i product0 = _mm256_mul_epu32(c0, multiplier0), product1 = _mm256_mul_epu32(c2, multiplier1);
      c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product1, 32), _mm256_set1_epi64x(k0)), c1);
      c1 = product1;
      c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product0, 32), _mm256_set1_epi64x(k1)), c3);
      c3 = product0;
      k0 += kPhiloxKeyStep0;
      k1 += kPhiloxKeyStep1;
    }
    const __m256i words01 = _mm256_blend_epi32(c0, _mm256_slli_epi64(c1, 32), 0xAA);
    const __m256i words23 = _mm256_blend_epi32(c2, _mm256_slli_epi64(c3, 32), 0xAA);
    out[0] = _mm256_unpacklo_epi64(words01, words23);
    out[1] = _mm256_unpackhi_epi64(words01, words23);
  }

  RandomState state_;
  __m256i high_, low_;
};

}  // namespace fastreg::cpu::FASTREG_ISA
