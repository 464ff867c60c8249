// The slab kernels with their epilogue.
#include "kernels/batch_norm/slab_launch.cuh"

namespace fastreg {

FASTREG_INSTANTIATE_SLAB(float, SlopedEpilogue<float>);
FASTREG_INSTANTIATE_SLAB(half, SlopedEpilogue<half>);
FASTREG_INSTANTIATE_SLAB(bfloat16, SlopedEpilogue<bfloat16>);

}  // namespace fastreg
