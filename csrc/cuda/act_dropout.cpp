// Dropout with what stands next to it, on CUDA devices.
#include "kernels/dropout/act_dropout.h"

#include "cuda/dropout.h"
#include "operators/act_dropout.h"

namespace fastreg::cuda {
namespace {

using at::Tensor;

constexpr const char* kOp = "act_dropout";
using Call = ActDropoutCall<StateSource>;

template <class T>
ActDropoutParameters<T> parameters_of(const Call& call) {
  ActDropoutParameters<T> parameters;
  if (call.bias.defined()) {
    parameters.bias = const_data<T>(call.bias);
    parameters.channels = call.bias.numel();
  }
  parameters.act = call.act;
  if (call.residual.defined()) parameters.residual = const_data<T>(call.residual);
  parameters.drops = call.drops;
  if (call.drops) parameters.dropout = call.drop;
  parameters.features = call.features;
  return parameters;
}

struct ActDropoutBackend {
  using Dropout = DropoutBackend;

  static void forward(const Tensor& x, const Tensor& y, const Call& call) {
    dispatch_floating(x.scalar_type(), kOp, [&](auto tag) {
      using T = decltype(tag);
      check(kOp, launch_act_dropout(const_data<T>(x), data<T>(y), x.numel(), parameters_of<T>(call), current_device()));
    });
  }

  static void backward(const Tensor& dy, const Tensor& x, const Tensor& dx, const Call& call) {
    dispatch_floating(x.scalar_type(), kOp, [&](auto tag) {
      using T = decltype(tag);
      check(kOp, launch_act_dropout_backward(const_data<T>(dy), const_data<T>(x), data<T>(dx), x.numel(),
                                             parameters_of<T>(call), current_device()));
    });
  }
};

}  // namespace
}  // namespace fastreg::cuda

TORCH_LIBRARY_IMPL(fastreg, FASTREG_DISPATCH_KEY, m) {
  fastreg::ActDropoutOperators<fastreg::cuda::ActDropoutBackend>::register_in(m);
}
