// Vectors of 16 bytes in the compiler's own vector types: what every x86-64 and 64-bit Arm machine has.
// f32 and f64 are vectors of kF32 and kF64 lanes; arithmetic on them is written with operators.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

using f32 = float __attribute__((vector_size(16)));
using f64 = double __attribute__((vector_size(16)));
constexpr int kF32 = 4, kF64 = 2;

FASTREG_HD f32 broadcast(float x) { return f32{x, x, x, x}; }
FASTREG_HD f64 broadcast(double x) { return f64{x, x}; }

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

// Lane i where bit i is set, zero elsewhere, whatever the lane holds.
FASTREG_HD f32 keep_lanes(f32 v, uint32_t bits) {
  return f32{bits & 1 ? v[0] : 0.f, bits & 2 ? v[1] : 0.f, bits & 4 ? v[2] : 0.f, bits & 8 ? v[3] : 0.f};
}
FASTREG_HD f64 keep_lanes(f64 v, uint32_t bits) { return f64{bits & 1 ? v[0] : 0., bits & 2 ? v[1] : 0.}; }

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
