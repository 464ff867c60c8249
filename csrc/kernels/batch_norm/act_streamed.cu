// The streamed batch norm kernels with their epilogue.
#include "kernels/batch_norm/streamed_launch.cuh"

namespace fastreg {

FASTREG_INSTANTIATE_STREAMED(float, SlopedEpilogue<float>);
FASTREG_INSTANTIATE_STREAMED(double, SlopedEpilogue<double>);
FASTREG_INSTANTIATE_STREAMED(half, SlopedEpilogue<half>);
FASTREG_INSTANTIATE_STREAMED(bfloat16, SlopedEpilogue<bfloat16>);

}  // namespace fastreg
