// The CPU kernels for every 64-bit machine.
#include "../kernels.h"

#define FASTREG_ISA baseline
#include "simd_baseline.h"
#include "table.inl"
