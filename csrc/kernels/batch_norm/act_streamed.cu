// The streamed batch norm kernels with their epilogue.
#include "kernels/batch_norm/streamed_launch.cuh"

namespace fastreg {

// In streamed.cu.
#define FASTREG_PLAIN_STATISTICS(T)                                                                      \
  extern template cudaError_t launch_batch_norm_statistics<T, NoEpilogue>(                               \
      const T*, const BatchNormShape&, const ChannelStatistics&, const RunningUpdate&, const Workspace&, \
      const Device&, const NoEpilogue&)
FASTREG_PLAIN_STATISTICS(float);
FASTREG_PLAIN_STATISTICS(double);
FASTREG_PLAIN_STATISTICS(half);
FASTREG_PLAIN_STATISTICS(bfloat16);

FASTREG_INSTANTIATE_STREAMED(float, SlopedEpilogue<float>);
FASTREG_INSTANTIATE_STREAMED(double, SlopedEpilogue<double>);
FASTREG_INSTANTIATE_STREAMED(half, SlopedEpilogue<half>);
FASTREG_INSTANTIATE_STREAMED(bfloat16, SlopedEpilogue<bfloat16>);

}  // namespace fastreg
