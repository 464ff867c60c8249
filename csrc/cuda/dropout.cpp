// Dropout on CUDA devices.
#include "cuda/dropout.h"

TORCH_LIBRARY_IMPL(fastreg, FASTREG_DISPATCH_KEY, m) {
  fastreg::DropoutOperators<fastreg::cuda::DropoutBackend>::register_in(m);
}
