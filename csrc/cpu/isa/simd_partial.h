// Accesses to the first `count` elements of a vector, fewer than it has, for the ends of arrays.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

// Lanes of the vector that holds elements T in compute type.
template <class T>
constexpr int kLanes = sizeof(compute_t<T>) == 4 ? kF32 : kF64;

// load() with zeros in the other lanes.
template <class T>
FASTREG_HD auto load_first(const T* p, int64_t count) {
  T elements[kLanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) elements[i] = p[i];
  return load(elements);
}

// widen() with `otherwise` in the other lanes.
template <class T>
FASTREG_HD f64 widen_first(const T* p, int64_t count, double otherwise) {
  double elements[kF64];
  for (int64_t i = 0; i < kF64; ++i) elements[i] = i < count ? double(to_compute(p[i])) : otherwise;
  return load(elements);
}

template <class T>
FASTREG_HD void store_first(T* p, int64_t count, decltype(load(p)) v) {
  T elements[kLanes<T>];
  store(elements, v);
  for (int64_t i = 0; i < count; ++i) p[i] = elements[i];
}

// Vectors whole, which is a constant, or the first `count` elements of them.
template <class T, class Whole>
FASTREG_HD auto load_some(const T* p, Whole, int64_t count) {
  if constexpr (Whole::value) return load(p);
  return load_first(p, count);
}
template <class T, class Whole>
FASTREG_HD void store_some(T* p, Whole, int64_t count, decltype(load(p)) v) {
  if constexpr (Whole::value) return store(p, v);
  store_first(p, count, v);
}

}  // namespace fastreg::cpu::FASTREG_ISA
