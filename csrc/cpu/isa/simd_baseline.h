// Vectors of 16 bytes in the compiler's own vector types: what every x86-64 and 64-bit Arm machine has.
// f32 and f64 are vectors of kF32 and kF64 lanes; arithmetic on them is written with operators.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

using f32 = float __attribute__((vector_size(16)));
using f64 = double __attribute__((vector_size(16)));
constexpr int kF32 = 4, kF64 = 2;

FASTREG_HD f32 broadcast(float x) { return f32{x, x, x, x}; }
FASTREG_HD f64 broadcast(double x) { return f64{x, x}; }

// The smaller and the larger of x and a number; NaN where x is.
FASTREG_HD f32 at_most(f32 x, float high) { return x > high ? broadcast(high) : x; }
FASTREG_HD f64 at_most(f64 x, double high) { return x > high ? broadcast(high) : x; }
FASTREG_HD f32 at_least(f32 x, float low) { return x < low ? broadcast(low) : x; }
FASTREG_HD f64 at_least(f64 x, double low) { return x < low ? broadcast(low) : x; }

// kF32 elements (kF64 doubles) as compute type, from any address.
FASTREG_HD f64 load(const double* p) {
  f64 v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
FASTREG_HD f32 load(const T* p) {
  return f32{to_compute(p[0]), to_compute(p[1]), to_compute(p[2]), to_compute(p[3])};
}

// The reverse; 16-bit types are rounded to nearest even.
FASTREG_HD void store(double* p, f64 v) { memcpy(p, &v, sizeof v); }
template <class T>
FASTREG_HD void store(T* p, f32 v) {
  for (int i = 0; i < kF32; ++i) p[i] = from_compute<T>(v[i]);
}

// a * b + c, rounded once. Without an instruction for it this is a call per lane, which the usual c, adding nothing,
// does not need.
FASTREG_HD bool adds_nothing(f32 c) {
  const f32 nothing = broadcast(-0.0f);
  return memcmp(&c, &nothing, sizeof c) == 0;
}
FASTREG_HD bool adds_nothing(f64 c) {
  const f64 nothing = broadcast(-0.0);
  return memcmp(&c, &nothing, sizeof c) == 0;
}
FASTREG_HD f32 multiply_add(f32 a, f32 b, f32 c) {
  if (adds_nothing(c)) return a * b;
  for (int i = 0; i < kF32; ++i) a[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return a;
}
FASTREG_HD f64 multiply_add(f64 a, f64 b, f64 c) {
  if (adds_nothing(c)) return a * b;
  for (int i = 0; i < kF64; ++i) a[i] = __builtin_fma(a[i], b[i], c[i]);
  return a;
}

// Lane i of a where bit i is set, of b elsewhere.
FASTREG_HD f32 choose(uint32_t bits, f32 a, f32 b) {
  return f32{bits & 1 ? a[0] : b[0], bits & 2 ? a[1] : b[1], bits & 4 ? a[2] : b[2], bits & 8 ? a[3] : b[3]};
}
FASTREG_HD f64 choose(uint32_t bits, f64 a, f64 b) { return f64{bits & 1 ? a[0] : b[0], bits & 2 ? a[1] : b[1]}; }

// Bit i is set where lane i of a comparison, which is 0 or -1, is true.
using f32_comparison = int32_t __attribute__((vector_size(16)));
using f64_comparison = int64_t __attribute__((vector_size(16)));

// v 2^n, n being whole. 2^n alone may be out of range.
FASTREG_HD f32 scaled(f32 v, f32 n) {
  const f32_comparison whole = __builtin_convertvector(n, f32_comparison), half = whole >> 1;
  return v * f32((half + 127) << 23) * f32((whole - half + 127) << 23);
}

FASTREG_HD uint32_t lane_bits(f32_comparison v) { return uint32_t((v[0] & 1) | (v[1] & 2) | (v[2] & 4) | (v[3] & 8)); }
FASTREG_HD uint32_t lane_bits(f64_comparison v) { return uint32_t((v[0] & 1) | (v[1] & 2)); }

// kF64 elements as doubles, from any address.
template <class T>
FASTREG_HD f64 widen(const T* p) {
  return f64{double(to_compute(p[0])), double(to_compute(p[1]))};
}

class KeepGenerator {
 public:
  KeepGenerator(RandomState state, DropThreshold threshold) : state_(state), threshold_(threshold) {}

  // Bit 8 j + s is set where element s of block first + j is kept, j = 0 .. 7.
  FASTREG_HD uint64_t operator()(uint64_t first) const {
    uint64_t keep = 0;
    for (int j = 0; j < 8; ++j) keep |= uint64_t(keep_bits(first + uint64_t(j), state_, threshold_)) << (8 * j);
    return keep;
  }

 private:
  RandomState state_;
  DropThreshold threshold_;
};

}  // namespace fastreg::cpu::FASTREG_ISA
