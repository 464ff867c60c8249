// Element types, the same on every compiler: 16-bit floats are stored as bits and computed in fp32.
#pragma once

#include "kernels/common/portable.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fastreg {

struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

// The type that arithmetic on T is done in.
template <class T>
struct compute_type {
  using type = float;
};
template <>
struct compute_type<double> {
  using type = double;
};
template <class T>
using compute_t = typename compute_type<T>::type;

namespace detail {

// IEEE binary16 -> binary32. Exact. Branch-free, so that compilers vectorise it.
FASTREG_HD float half_to_float(uint16_t h) {
  const uint32_t sign = (uint32_t(h) & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(h) & 0x7FFFu;
  // Shift the fields into place, then let one exact multiplication rebias the exponent; it also normalises
  // denormals. Infinity and NaN keep an all-ones exponent.
  const float scaled = bit_cast<float>(magnitude << 13) * bit_cast<float>(uint32_t(254 - 15) << 23);
  const uint32_t special = magnitude >= 0x7C00u ? 0x7F800000u : 0u;
  return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | sign);
}

// binary32 -> IEEE binary16, to nearest, ties to even.
FASTREG_HD uint16_t float_to_half(float f) {
  const uint32_t u = bit_cast<uint32_t>(f);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7FFFFFFFu;
  // Normal results: rebias, then add half of the last place, less one where the result would be odd.
  const uint32_t normal = (magnitude - (uint32_t(127 - 15) << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  // Denormal results: adding 0.5 puts the result's last place at the float's last place and rounds it there.
  const float aligned = bit_cast<float>(magnitude) + 0.5f;
  const uint32_t denormal = bit_cast<uint32_t>(aligned) - 0x3F000000u;
  uint32_t result = magnitude < (uint32_t(127 - 14) << 23) ? denormal : normal;
  result = magnitude >= (uint32_t(127 + 16) << 23) ? 0x7C00u : result;  // too large: infinity
  result = magnitude > 0x7F800000u ? 0x7E00u : result;                  // NaN
  return uint16_t(result | sign);
}

FASTREG_HD float bfloat16_to_float(uint16_t b) { return bit_cast<float>(uint32_t(b) << 16); }

FASTREG_HD uint16_t float_to_bfloat16(float f) {
  const uint32_t u = bit_cast<uint32_t>(f);
  const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  return uint16_t((u & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

}  // namespace detail

FASTREG_HD float to_compute(float x) { return x; }
FASTREG_HD double to_compute(double x) { return x; }
FASTREG_HD float to_compute(half x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  return detail::half_to_float(x.bits);
#endif
}
FASTREG_HD float to_compute(bfloat16 x) { return detail::bfloat16_to_float(x.bits); }

// from_compute<T>(value): rounded once, to nearest even.
template <class T>
FASTREG_HD T from_compute(compute_t<T> x) {
  return x;
}
template <>
FASTREG_HD half from_compute<half>(float x) {
#if defined(__CUDA_ARCH__)
  return half{__half_as_ushort(__float2half_rn(x))};
#else
  return half{detail::float_to_half(x)};
#endif
}
template <>
FASTREG_HD bfloat16 from_compute<bfloat16>(float x) {
#if defined(__CUDA_ARCH__)
  return bfloat16{__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  return bfloat16{detail::float_to_bfloat16(x)};
#endif
}

}  // namespace fastreg
