// Device memory for tests: aligned as cudaMalloc aligns it, between guards, every byte 0xFF (NaN in each floating
// type) until written.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

namespace host_executor {

// The memory behind a Buffer. Accesses through csrc/kernels/common/memory.h that leave it are reported, as are other
// writes to its guards at the end of a run; under AddressSanitizer every access to them.
class DeviceMemory {
 public:
  // offset: bytes by which the start is moved off its alignment.
  DeviceMemory(size_t bytes, size_t offset, std::string name);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  char* data() const { return data_; }
  size_t size() const { return size_; }
  const std::string& name() const { return name_; }
  bool guards_intact() const;

 private:
  char* memory_;
  char* data_;
  size_t size_, memory_size_;
  std::string name_;
};

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count, std::string name = "buffer", size_t offset_elements = 0)
      : memory_(count * sizeof(T), offset_elements * sizeof(T), std::move(name)), count_(count) {}
  explicit Buffer(const std::vector<T>& values, std::string name = "buffer", size_t offset_elements = 0)
      : Buffer(values.size(), std::move(name), offset_elements) {
    std::copy(values.begin(), values.end(), begin());
  }

  T* data() { return reinterpret_cast<T*>(memory_.data()); }
  const T* data() const { return reinterpret_cast<const T*>(memory_.data()); }
  size_t size() const { return count_; }
  T* begin() { return data(); }
  T* end() { return data() + count_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + count_; }
  T& operator[](size_t i) { return data()[i]; }
  const T& operator[](size_t i) const { return data()[i]; }

  // As if never written.
  void poison() { std::memset(memory_.data(), 0xFF, memory_.size()); }
  // Elements all of whose bytes are still 0xFF.
  size_t unwritten() const {
    size_t count = 0;
    for (const T& element : *this) {
      const auto* bytes = reinterpret_cast<const unsigned char*>(&element);
      count += std::all_of(bytes, bytes + sizeof(T), [](unsigned char byte) { return byte == 0xFF; });
    }
    return count;
  }

 private:
  DeviceMemory memory_;
  size_t count_;
};

}  // namespace host_executor
