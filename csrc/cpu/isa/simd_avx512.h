// Vectors of 64 bytes. See simd_baseline.h for what each function is to do.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

using f32 = __m512;
using f64 = __m512d;
constexpr int kF32 = 16, kF64 = 8;

FASTREG_HD f32 broadcast(float x) { return _mm512_set1_ps(x); }
FASTREG_HD f64 broadcast(double x) { return _mm512_set1_pd(x); }

// Of two operands of which one is NaN these are the second.
FASTREG_HD f32 at_most(f32 x, float high) { return _mm512_min_ps(broadcast(high), x); }
FASTREG_HD f64 at_most(f64 x, double high) { return _mm512_min_pd(broadcast(high), x); }
FASTREG_HD f32 at_least(f32 x, float low) { return _mm512_max_ps(broadcast(low), x); }
FASTREG_HD f64 at_least(f64 x, double low) { return _mm512_max_pd(broadcast(low), x); }

FASTREG_HD f32 load(const float* p) { return _mm512_loadu_ps(p); }
FASTREG_HD f64 load(const double* p) { return _mm512_loadu_pd(p); }
FASTREG_HD f32 from_bits(__m256i bits, half) { return _mm512_cvtph_ps(bits); }
FASTREG_HD f32 from_bits(__m256i bits, bfloat16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
FASTREG_HD f32 load(const half* p) {
  return from_bits(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), half());
}
FASTREG_HD f32 load(const bfloat16* p) {
  return from_bits(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), bfloat16());
}

FASTREG_HD __m256i to_bits(f32 v, half) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FASTREG_HD __m256i to_bits(f32 v, bfloat16) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_mov_epi32(_mm512_srli_epi32(sum, 16), nan, _mm512_set1_epi32(0x7FC0));
  return _mm512_cvtepi32_epi16(rounded);
}
FASTREG_HD void store(float* p, f32 v) { _mm512_storeu_ps(p, v); }
FASTREG_HD void store(double* p, f64 v) { _mm512_storeu_pd(p, v); }
FASTREG_HD void store(half* p, f32 v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bits(v, half())); }
FASTREG_HD void store(bfloat16* p, f32 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bits(v, bfloat16()));
}

FASTREG_HD f32 multiply_add(f32 a, f32 b, f32 c) { return _mm512_fmadd_ps(a, b, c); }
FASTREG_HD f64 multiply_add(f64 a, f64 b, f64 c) { return _mm512_fmadd_pd(a, b, c); }

FASTREG_HD f32 choose(uint32_t bits, f32 a, f32 b) { return _mm512_mask_mov_ps(b, __mmask16(bits), a); }
FASTREG_HD f64 choose(uint32_t bits, f64 a, f64 b) { return _mm512_mask_mov_pd(b, __mmask8(bits), a); }

using f32_comparison = int32_t __attribute__((vector_size(64)));
using f64_comparison = int64_t __attribute__((vector_size(64)));

// v 2^n, rounded once.
FASTREG_HD f32 scaled(f32 v, f32 n) { return _mm512_scalef_ps(v, n); }

FASTREG_HD uint32_t lane_bits(f32_comparison v) { return _mm512_movepi32_mask(__m512i(v)); }
FASTREG_HD uint32_t lane_bits(f64_comparison v) { return _mm512_movepi64_mask(__m512i(v)); }

FASTREG_HD f64 widen(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
FASTREG_HD f64 widen(const double* p) { return load(p); }
FASTREG_HD __m256 from_bits(__m128i bits, half) { return _mm256_cvtph_ps(bits); }
FASTREG_HD __m256 from_bits(__m128i bits, bfloat16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
FASTREG_HD f64 widen(const half* p) {
  return _mm512_cvtps_pd(from_bits(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), half()));
}
FASTREG_HD f64 widen(const bfloat16* p) {
  return _mm512_cvtps_pd(from_bits(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), bfloat16()));
}

// Masked accesses, where simd_partial.h would go through a buffer.
FASTREG_HD __mmask16 first_lanes(int64_t count) { return __mmask16((1u << count) - 1); }
FASTREG_HD f64 widen_first(__m256 v, int64_t count, double otherwise) {
  return _mm512_mask_cvtps_pd(_mm512_set1_pd(otherwise), __mmask8(first_lanes(count)), v);
}
FASTREG_HD f64 widen_first(const double* p, int64_t count, double otherwise) {
  return _mm512_mask_loadu_pd(_mm512_set1_pd(otherwise), __mmask8(first_lanes(count)), p);
}
FASTREG_HD f64 widen_first(const float* p, int64_t count, double otherwise) {
  return widen_first(_mm256_maskz_loadu_ps(__mmask8(first_lanes(count)), p), count, otherwise);
}
FASTREG_HD f64 widen_first(const half* p, int64_t count, double otherwise) {
  return widen_first(from_bits(_mm_maskz_loadu_epi16(__mmask8(first_lanes(count)), p), half()), count, otherwise);
}
FASTREG_HD f64 widen_first(const bfloat16* p, int64_t count, double otherwise) {
  return widen_first(from_bits(_mm_maskz_loadu_epi16(__mmask8(first_lanes(count)), p), bfloat16()), count, otherwise);
}

FASTREG_HD f32 load_first(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(first_lanes(count), p); }
FASTREG_HD f64 load_first(const double* p, int64_t count) {
  return _mm512_maskz_loadu_pd(__mmask8(first_lanes(count)), p);
}
FASTREG_HD f32 load_first(const half* p, int64_t count) {
  return from_bits(_mm256_maskz_loadu_epi16(first_lanes(count), p), half());
}
FASTREG_HD f32 load_first(const bfloat16* p, int64_t count) {
  return from_bits(_mm256_maskz_loadu_epi16(first_lanes(count), p), bfloat16());
}

FASTREG_HD void store_first(float* p, int64_t count, f32 v) { _mm512_mask_storeu_ps(p, first_lanes(count), v); }
FASTREG_HD void store_first(double* p, int64_t count, f64 v) {
  _mm512_mask_storeu_pd(p, __mmask8(first_lanes(count)), v);
}
FASTREG_HD void store_first(half* p, int64_t count, f32 v) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), to_bits(v, half()));
}
FASTREG_HD void store_first(bfloat16* p, int64_t count, f32 v) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), to_bits(v, bfloat16()));
}

// Eight Philox calls in the eight 64-bit lanes. Each 32-bit word of the state sits in the low half of its lane, and
// what the high half holds is never looked at: a multiplication reads low halves only.
class KeepGenerator {
 public:
  KeepGenerator(RandomState state, DropThreshold threshold)
      : state_(state), high_(_mm512_set1_epi16(short(threshold.high))), low_(_mm512_set1_epi16(short(threshold.low))) {}

  // Bit 8 j + s is set where element s of block first + j is kept, j = 0 .. 7.
  FASTREG_HD uint64_t operator()(uint64_t first) const {
    __m512i u[2];
    draws(first, state_.offset / 4, u);
    const uint64_t keep = mask64(_mm512_cmpge_epu16_mask(u[0], high_), _mm512_cmpge_epu16_mask(u[1], high_));
    const uint64_t tie = mask64(_mm512_cmpeq_epi16_mask(u[0], high_), _mm512_cmpeq_epi16_mask(u[1], high_));
    return __builtin_expect(tie != 0, 0) ? keep & ~(tie & lost_ties(first)) : keep;
  }

 private:
  FASTREG_HD static uint64_t mask64(__mmask32 a, __mmask32 b) { return uint64_t(a) | uint64_t(b) << 32; }

  __attribute__((noinline)) uint64_t lost_ties(uint64_t first) const {
    __m512i v[2];
    draws(first, state_.offset / 4 + 1, v);
    return mask64(_mm512_cmplt_epu16_mask(v[0], low_), _mm512_cmplt_epu16_mask(v[1], low_));
  }

  // The draws of blocks first .. first + 3 and first + 4 .. first + 7.
  FASTREG_HD void draws(uint64_t first, uint64_t call, __m512i out[2]) const {
    // Lane order chosen so that unpacking at the end leaves the blocks in order.
    const __m512i block = _mm512_add_epi64(_mm512_set1_epi64(int64_t(first)), _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0));
    const __m512i multiplier0 = _mm512_set1_epi64(kPhiloxMultiplier0),
                  multiplier1 = _mm512_set1_epi64(kPhiloxMultiplier1);
    __m512i c0 = _mm512_set1_epi64(uint32_t(call)), c1 = _mm512_set1_epi64(int64_t(call >> 32));
    __m512i c2 = block, c3 = _mm512_srli_epi64(block, 32);
    uint32_t k0 = uint32_t(state_.seed), k1 = uint32_t(state_.seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const __m512i product0 = _mm512_mul_epu32(c0, multiplier0), product1 = _mm512_mul_epu32(c2, multiplier1);
      constexpr int kXor3 = 0x96;
      c0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product1, 32), c1, _mm512_set1_epi64(k0), kXor3);
      c1 = product1;
      c2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product0, 32), c3, _mm512_set1_epi64(k1), kXor3);
      c3 = product0;
      k0 += kPhiloxKeyStep0;
      k1 += kPhiloxKeyStep1;
    }
    const __m512i words01 = _mm512_mask_blend_epi32(0xAAAA, c0, _mm512_slli_epi64(c1, 32));
    const __m512i words23 = _mm512_mask_blend_epi32(0xAAAA, c2, _mm512_slli_epi64(c3, 32));
    out[0] = _mm512_unpacklo_epi64(words01, words23);
    out[1] = _mm512_unpackhi_epi64(words01, words23);
  }

  RandomState state_;
  __m512i high_, low_;
};

}  // namespace fastreg::cpu::FASTREG_ISA
