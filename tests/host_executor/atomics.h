// Integer atomics and memory fences. There are no atomics on floating-point numbers: the project's results do not
// depend on the order in which blocks run.
//
// As on the device an atomic by itself orders nothing. A fence before it makes it release, a fence after it acquire;
// race detection follows that (fence()), so that a forgotten fence is a reported race.
#pragma once

#include <cstdint>
#include <type_traits>

#include "host_executor/language.h"

namespace host_executor {

// Around every atomic: gives other threads a chance to come first, counts, and applies an earlier fence.
void before_atomic(const volatile void* address);
// Wakes threads that wait for the word to change, and remembers it for a later fence.
void after_atomic(const volatile void* address);
void fence();

// The ordered operations of csrc/kernels/common/grid_sync.h.
void park_until_changed(const unsigned* address, unsigned seen, unsigned needed);

template <class T, class Operation>
T atomic(T* address, Operation operation) {
  before_atomic(address);
  const T before = operation(address);
  after_atomic(address);
  return before;
}

// Applies a function of the old value that has no instruction of its own.
template <class T, class Function>
T atomic_update(T* address, Function function) {
  return atomic(address, [&](T* p) {
    T before = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &before, function(before), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return before;
  });
}

inline unsigned fetch_add_ordered(unsigned* address, unsigned value) {
  return atomic(address, [=](unsigned* p) { return __atomic_fetch_add(p, value, __ATOMIC_ACQ_REL); });
}

inline void wait_at_least(const unsigned* address, unsigned value) {
  for (;;) {
    const unsigned seen = __atomic_load_n(address, __ATOMIC_ACQUIRE);
    if (seen >= value) return;
    park_until_changed(address, seen, value);
  }
}

template <class T>
constexpr bool has_atomics = std::is_integral<T>::value && (sizeof(T) == 4 || sizeof(T) == 8);

}  // namespace host_executor

template <class T>
T atomicAdd(T* address, T value) {
  static_assert(host_executor::has_atomics<T>, "atomicAdd: integers only");
  return host_executor::atomic(address, [=](T* p) { return __atomic_fetch_add(p, value, __ATOMIC_RELAXED); });
}
template <class T>
T atomicSub(T* address, T value) {
  static_assert(host_executor::has_atomics<T>, "atomicSub: integers only");
  return host_executor::atomic(address, [=](T* p) { return __atomic_fetch_sub(p, value, __ATOMIC_RELAXED); });
}
template <class T>
T atomicOr(T* address, T value) {
  static_assert(host_executor::has_atomics<T>, "atomicOr: integers only");
  return host_executor::atomic(address, [=](T* p) { return __atomic_fetch_or(p, value, __ATOMIC_RELAXED); });
}
template <class T>
T atomicAnd(T* address, T value) {
  static_assert(host_executor::has_atomics<T>, "atomicAnd: integers only");
  return host_executor::atomic(address, [=](T* p) { return __atomic_fetch_and(p, value, __ATOMIC_RELAXED); });
}
template <class T>
T atomicExch(T* address, T value) {
  static_assert(host_executor::has_atomics<T>, "atomicExch: integers only");
  return host_executor::atomic(address, [=](T* p) { return __atomic_exchange_n(p, value, __ATOMIC_RELAXED); });
}
template <class T>
T atomicCAS(T* address, T expected, T value) {
  static_assert(host_executor::has_atomics<T>, "atomicCAS: integers only");
  return host_executor::atomic(address, [=](T* p) {
    T before = expected;
    __atomic_compare_exchange_n(p, &before, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return before;
  });
}
template <class T>
T atomicMax(T* address, T value) {
  static_assert(host_executor::has_atomics<T>, "atomicMax: integers only");
  return host_executor::atomic_update(address, [=](T before) { return before < value ? value : before; });
}
template <class T>
T atomicMin(T* address, T value) {
  static_assert(host_executor::has_atomics<T>, "atomicMin: integers only");
  return host_executor::atomic_update(address, [=](T before) { return value < before ? value : before; });
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return host_executor::atomic_update(address, [=](unsigned before) { return before >= limit ? 0 : before + 1; });
}
inline unsigned atomicDec(unsigned* address, unsigned limit) {
  return host_executor::atomic_update(
      address, [=](unsigned before) { return before == 0 || before > limit ? limit : before - 1; });
}

inline void __threadfence_block() { host_executor::fence(); }
inline void __threadfence() { host_executor::fence(); }
inline void __threadfence_system() { host_executor::fence(); }
