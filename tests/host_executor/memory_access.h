// The loads and stores of csrc/kernels/common/memory.h: checked for alignment and bounds, and counted.
#pragma once

#include <cstddef>
#include <cstring>

#include "host_executor/language.h"

namespace host_executor {

enum class Access { load, store };

// False where the access must not be performed: misaligned, or outside of the memory it points into. Not inlined: the
// address it returns to tells the accesses of a kernel apart, which is how the lanes of a warp request are found.
bool check_access(Access access, const void* address, size_t bytes);

template <class V>
__forceinline__ V load(const V* address) {
  if (check_access(Access::load, address, sizeof(V))) return *address;
  V poison;
  std::memset(static_cast<void*>(&poison), 0xFF, sizeof(V));
  return poison;
}

template <class V>
__forceinline__ void store(V* address, const V& value) {
  if (check_access(Access::store, address, sizeof(V))) *address = value;
}

}  // namespace host_executor

// Cache hints mean nothing here.
template <class T>
T __ldg(const T* address) {
  return host_executor::load(address);
}
