// Instantiates the kernels of the self-test, so that nvcc compiles all of cluster.h, async_copy.h and grid_sync.h.
#include "kernels.cuh"

namespace selftest {

template __global__ void normalise_rows<Bug::none>(const float*, float*, int);
template __global__ void count_positive<Bug::none>(const float*, unsigned*, int);
template __global__ void copy<Bug::none, uint16_t>(const uint16_t*, uint16_t*, int64_t);
template __global__ void cluster_sum<Bug::none>(const float*, float*, int);
template __global__ void grid_sum<Bug::none>(const float*, float*, unsigned*, float*, int);
template __global__ void last_block_sum<Bug::none>(const float*, float*, unsigned*, float*, int);
template __global__ void pipeline<Bug::none>(const float*, float*, int);
template __global__ void bulk_double<Bug::none>(const float*, float*, int, int);
template __global__ void consume<Bug::none>(const float*, float*, int);
}  // namespace selftest
