// Dropout on the CPU.
#include "cpu/dropout.h"

TORCH_LIBRARY_IMPL(fastreg, CPU, m) { fastreg::DropoutOperators<fastreg::cpu::DropoutBackend>::register_in(m); }
