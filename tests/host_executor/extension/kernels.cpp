// The CUDA kernels as C++.
#include "kernels/batch_norm_grid.cu"
#include "kernels/batch_norm_merge.cu"
#include "kernels/batch_norm_slab.cu"
#include "kernels/batch_norm_streamed.cu"
#include "kernels/dropout.cu"
#include "kernels/feature_dropout.cu"
