// Launch function of the feature dropout kernel.
#pragma once

#include "kernels/dropout/dropout.h"

namespace fastreg {

// y = feature dropout(x), n elements that lie as `features` says, x == y allowed. residual: as many elements, or null;
// with it y = keep ? fma(x, scale, residual) : residual. Any alignment that T itself needs; fastest where all pointers
// are off a 16-byte boundary by the same number of bytes. One launch.
template <class T>
cudaError_t launch_feature_dropout(const T* x, const T* residual, T* y, int64_t n, const FeatureMap& features,
                                   const DropoutParameters& parameters, const Device& device);

}  // namespace fastreg
