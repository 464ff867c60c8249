// Dropout on the CPU.
#include "dropout.h"

TORCH_LIBRARY_IMPL(fastreg, CPU, m) { fastreg::DropoutOperators<fastreg::cpu::DropoutBackend>::register_in(m); }
