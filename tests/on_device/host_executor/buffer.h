// Stands in for tests/host_executor/buffer.h where the tests of the kernels run on a GPU: the same Buffer, but data()
// is device memory, and what the host reads and writes is a mirror of it. run() uploads what the host has touched; the
// host sees what a kernel wrote when it next looks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace host_executor {

// Plain cudaMalloc memory between guards, which are compared at the end of each run. With FASTREG_ON_DEVICE_BARE=1,
// for compute-sanitizer, there are no guards, and what the host has not written is not written: the tool then sees
// accesses out of bounds, and reads of what no one wrote, which guards and poison would hide from it.
class DeviceMemory {
 public:
  // offset: bytes by which the start is moved off its alignment.
  DeviceMemory(size_t bytes, size_t offset, std::string name);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  char* device() const { return device_; }
  // The mirror: to read, and to write, after which the next run uploads it.
  const char* read() const;
  char* write();
  void poison();
  size_t size() const { return mirror_.size(); }
  const std::string& name() const { return name_; }

  // Of run().
  void upload();
  void kernels_have_run() { stale_ = true; }
  bool guards_intact() const;

 private:
  char *memory_ = nullptr, *device_ = nullptr;
  size_t offset_;
  std::string name_;
  mutable std::vector<char> mirror_;
  mutable bool stale_ = false;  // the device may hold something newer
  bool touched_ = false;        // the mirror does
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

  T* data() { return reinterpret_cast<T*>(memory_.device()); }
  const T* data() const { return reinterpret_cast<const T*>(memory_.device()); }
  size_t size() const { return count_; }
  T* begin() { return reinterpret_cast<T*>(memory_.write()); }
  T* end() { return begin() + count_; }
  const T* begin() const { return reinterpret_cast<const T*>(memory_.read()); }
  const T* end() const { return begin() + count_; }
  T& operator[](size_t i) { return begin()[i]; }
  const T& operator[](size_t i) const { return begin()[i]; }

  void poison() { memory_.poison(); }
  // Elements all of whose bytes are still 0xFF.
  size_t unwritten() const {
    return size_t(std::count_if(begin(), end(), [](const T& element) {
      const auto* bytes = reinterpret_cast<const unsigned char*>(&element);
      return std::all_of(bytes, bytes + sizeof(T), [](unsigned char byte) { return byte == 0xFF; });
    }));
  }

 private:
  DeviceMemory memory_;
  size_t count_;
};

}  // namespace host_executor
