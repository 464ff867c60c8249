// Launch functions of the kernel of activation and dropout.
#pragma once

#include <optional>

#include "kernels/common/activation.h"
#include "kernels/dropout/dropout.h"

namespace fastreg {

// y = dropout(act(x + bias)) + residual, all but x optional. Of the dropout's transform only the scale counts, and of
// its map nothing: element or feature j is number j of the stream.
template <class T>
struct ActDropoutParameters {
  const T* bias = nullptr;  // added to element j: bias[j mod channels]
  int64_t channels = 1;
  Activation act;
  const T* residual = nullptr;
  bool drops = false;
  DropoutParameters dropout;
  std::optional<FeatureMap> features;  // none: elements draw each for itself
};

// n elements; any alignment that T itself needs, fastest where all pointers are 16-byte aligned. One launch.
template <class T>
cudaError_t launch_act_dropout(const T* x, T* y, int64_t n, const ActDropoutParameters<T>& parameters,
                               const Device& device);

// dx = dropout(dy) act'(x + bias). The residual does not matter. One launch.
template <class T>
cudaError_t launch_act_dropout_backward(const T* dy, const T* x, T* dx, int64_t n,
                                        const ActDropoutParameters<T>& parameters, const Device& device);

}  // namespace fastreg
