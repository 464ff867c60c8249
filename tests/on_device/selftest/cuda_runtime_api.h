// As much of the CUDA runtime as tests/on_device uses, on host memory, so that it can be tested without a GPU.
#pragma once

#include <cstdlib>
#include <cstring>

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorIllegalAddress = 700 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
struct cudaDeviceProp {
  char name[8];
  int major, minor;
};

namespace fake {
inline int devices = 1;
inline cudaError_t error = cudaSuccess;   // what a kernel has left behind; lost at the first look, as on a device
inline cudaError_t sticky = cudaSuccess;  // has ended the context: returned from then on, however often it is read
inline size_t uploads = 0, downloads = 0;
}  // namespace fake

inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "an error"; }
inline cudaError_t cudaGetLastError() {
  const cudaError_t error = fake::error;
  fake::error = cudaSuccess;
  return fake::sticky != cudaSuccess ? fake::sticky : error;
}
inline cudaError_t cudaDeviceSynchronize() { return fake::sticky; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = fake::devices, cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) { return *p = {"fake", 1, 2}, cudaSuccess; }
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::malloc(bytes + 1);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaMemset(void* to, int value, size_t bytes) { return std::memset(to, value, bytes), cudaSuccess; }
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  ++(kind == cudaMemcpyHostToDevice ? fake::uploads : fake::downloads);
  if (bytes) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
