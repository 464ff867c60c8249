// The slab kernels with their epilogue.
#include "batch_norm_slab_launch.cuh"

namespace fastreg {

FASTREG_INSTANTIATE_SLAB(float, Epilogue<float>);
FASTREG_INSTANTIATE_SLAB(half, Epilogue<half>);
FASTREG_INSTANTIATE_SLAB(bfloat16, Epilogue<bfloat16>);

}  // namespace fastreg
