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

// The next value is loaded when the one before it has been used.
template <class T, int V>
__global__ void one_at_a_time_kernel(const float4* x, float4* y, int n) {
  float sum = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const float4 v = x[i];
    sum = sum * v.x + v.y;
    y[i] = float4{sum, v.y, v.z, v.w};
  }
}

// The same with more in flight: a correct one.
template <class T, int V>
__global__ void __launch_bounds__(256, 4) eight_at_a_time_kernel(const float4* x, float4* y, int n) {
  for (int i = threadIdx.x; i + 7 * 256 < n; i += 8 * 256) {
    float4 v[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) v[u] = x[i + u * 256];
#pragma unroll
    for (int u = 0; u < 8; ++u) y[i + u * 256] = v[u];
  }
}

// Partial results of 1024 blocks, merged one after the other, each with a division.
template <class T, int V>
__global__ void serial_tail_kernel(const float4* partials, float4* total) {
  float count = 0, mean = 0;
#pragma unroll 1
  for (int i = 0; i < 1024; ++i) {
    const float4 partial = __ldcg(partials + i * blockDim.x + threadIdx.x);
    count += partial.x;
    mean += (partial.y - mean) * (partial.x / count);
  }
  total[threadIdx.x] = float4{count, mean, 0, 0};
}

// All warps wait in each turn until their stores have reached L2.
template <class T, int V>
__global__ void __launch_bounds__(256, 4) fence_kernel(const float4* x, float4* y, int items, int n) {
  for (int item = 0; item < items; ++item) {
    for (int i = threadIdx.x; i + 7 * 256 < n; i += 8 * 256) {
      float4 v[8];
#pragma unroll
      for (int u = 0; u < 8; ++u) v[u] = x[i + u * 256];
#pragma unroll
      for (int u = 0; u < 8; ++u) y[i + u * 256] = v[u];
    }
    __threadfence();
  }
}

template __global__ void copy_kernel<float, 4>(const float4*, float4*, int);
template __global__ void spilling_kernel<float, 4>(const float4*, float4*, int);
template __global__ void local_memory_kernel<float, 4>(const float4*, float4*, int);
template __global__ void scalar_kernel<float, 4>(const float*, float*, int);
template __global__ void scalar_weight_kernel<float, 4>(const float4*, const float*, float4*, int);
template __global__ void warning_kernel<float, 4>(const float4*, float4*);
template __global__ void one_at_a_time_kernel<float, 4>(const float4*, float4*, int);
template __global__ void eight_at_a_time_kernel<float, 4>(const float4*, float4*, int);
template __global__ void serial_tail_kernel<float, 4>(const float4*, float4*);
template __global__ void fence_kernel<float, 4>(const float4*, float4*, int, int);

}  // namespace fastreg
