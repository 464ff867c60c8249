// Batch norm with what stands next to it, on CUDA devices.
#include "../batch_norm_act_operators.h"
#include "../kernels/epilogue.h"
#include "batch_norm_call.h"
#include "dropout.h"

namespace fastreg::cuda {
namespace {

constexpr const char* kOp = "batch_norm_act";
using CudaFusion = Fusion<StateSource>;

template <class T>
Epilogue<T> epilogue_of(const CudaFusion& fusion) {
  Epilogue<T> epilogue;
  epilogue.set_activations(fusion.pre_act, fusion.act);
  if (fusion.residual.defined()) epilogue.residual = const_data<T>(fusion.residual);
  if (fusion.gate.defined()) epilogue.gate = fusion.gate.data_ptr<uint8_t>();
  if (fusion.drops) epilogue.set_dropout(fusion.drop);
  return epilogue;
}

EpilogueTraffic traffic_of(const CudaFusion& fusion, bool grad_residual = false) {
  return {fusion.residual.defined(), fusion.gate.defined(), grad_residual};
}

// Of a forward pass: epilogue(T{}).
auto forward_epilogue(const Planned& planned, const CudaFusion& fusion) {
  const bool shared = planned.plan.shares_gates;
  if (shared) fusion.gate.zero_();
  return [&fusion, shared](auto tag) {
    auto epilogue = epilogue_of<decltype(tag)>(fusion);
    epilogue.shares_gates = shared;
    return epilogue;
  };
}

struct BatchNormActBackend {
  using Dropout = DropoutBackend;

  static void train(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
                    const Statistics& statistics, const Running& running, const CudaFusion& fusion) {
    const Planned planned(kOp, layout, BatchNormPass::train, {x, y, fusion.residual}, true, traffic_of(fusion));
    cuda::train(kOp, planned, x, y, affine, statistics, running, forward_epilogue(planned, fusion));
  }

  static void eval(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
                   const Statistics& statistics, const CudaFusion& fusion) {
    const Planned planned(kOp, layout, BatchNormPass::eval, {x, y, fusion.residual}, true, traffic_of(fusion));
    cuda::eval(kOp, layout, x, y, affine, statistics, forward_epilogue(planned, fusion));
  }

  static void backward(const ChannelLayout& layout, const Tensor& dy, const Tensor& x, const Affine& affine,
                       const Statistics& statistics, const CudaFusion& fusion, const FusedGradients& gradients) {
    const Planned planned(kOp, layout, backward_pass(statistics),
                          {x, dy, fusion.residual, gradients.input, gradients.residual}, true,
                          traffic_of(fusion, gradients.residual.defined()));
    const Tensor bias = contiguous(affine.bias);
    cuda::backward(kOp, planned, dy, x, affine.weight, statistics, gradients, [&](auto tag) {
      using T = decltype(tag);
      Epilogue<T> epilogue = epilogue_of<T>(fusion);
      epilogue.bias = values_of(bias);
      if (gradients.residual.defined()) epilogue.grad_residual = data<T>(gradients.residual);
      return epilogue;
    });
  }
};

}  // namespace
}  // namespace fastreg::cuda

TORCH_LIBRARY_IMPL(fastreg, FASTREG_DISPATCH_KEY, m) {
  fastreg::BatchNormActOperators<fastreg::cuda::BatchNormActBackend>::register_in(m);
}
