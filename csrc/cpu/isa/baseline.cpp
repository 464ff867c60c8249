// The CPU kernels for every 64-bit machine.
#include "cpu/isa/kernels.h"

#define FASTREG_ISA baseline
#include "cpu/isa/simd_baseline.h"
#include "cpu/isa/table.inl"
