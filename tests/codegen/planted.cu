// Kernels with mistakes that test_codegen.py must see, and a correct one that it must not report.
#include <cuda_runtime.h>

namespace fastreg {

template <class T, int V>
__global__ void copy_kernel(const float4* x, float4* y, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = x[i];
}

// 128 values live at once, 32 registers.
template <class T, int V>
__global__ void __launch_bounds__(1024, 2) spilling_kernel(const float4* x, float4* y, int n) {
  float4 values[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) values[i] = x[i * n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 32; ++i) y[i * n + threadIdx.x] = values[31 - i];
}

// An array indexed by what only the device knows is in local memory.
template <class T, int V>
__global__ void local_memory_kernel(const float4* x, float4* y, int n) {
  float4 values[8];
  for (int i = 0; i < n; ++i) values[i * n % 8] = x[i];
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = values[i % 8];
}

template <class T, int V>
__global__ void scalar_kernel(const float* x, float* y, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = x[i];
}

template <class T, int V>
__global__ void scalar_weight_kernel(const float4* x, const float* weight, float4* y, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    float4 v = x[i];
    v.x *= weight[i];
    y[i] = v;
  }
}

template <class T, int V>
__global__ void warning_kernel(const float4* x, float4* y) {
  int unused;
  y[threadIdx.x] = x[threadIdx.x];
}

template __global__ void copy_kernel<float, 4>(const float4*, float4*, int);
template __global__ void spilling_kernel<float, 4>(const float4*, float4*, int);
template __global__ void local_memory_kernel<float, 4>(const float4*, float4*, int);
template __global__ void scalar_kernel<float, 4>(const float*, float*, int);
template __global__ void scalar_weight_kernel<float, 4>(const float4*, const float*, float4*, int);
template __global__ void warning_kernel<float, 4>(const float4*, float4*);

}  // namespace fastreg
