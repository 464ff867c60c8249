// The kernels of teams of co-resident blocks with their epilogue.
#include "kernels/batch_norm/grid_launch.cuh"

namespace fastreg {

FASTREG_INSTANTIATE_GRID(float, Epilogue<float>);
FASTREG_INSTANTIATE_GRID(half, Epilogue<half>);
FASTREG_INSTANTIATE_GRID(bfloat16, Epilogue<bfloat16>);

}  // namespace fastreg
