// The streamed batch norm kernels with their epilogue.
#include "batch_norm_streamed_launch.cuh"

namespace fastreg {

FASTREG_INSTANTIATE_STREAMED(float, Epilogue<float>);
FASTREG_INSTANTIATE_STREAMED(double, Epilogue<double>);
FASTREG_INSTANTIATE_STREAMED(half, Epilogue<half>);
FASTREG_INSTANTIATE_STREAMED(bfloat16, Epilogue<bfloat16>);

}  // namespace fastreg
