// Dropout with what stands next to it, on the CPU.
#include "operators/act_dropout.h"
#include "cpu/dropout.h"
#include "cpu/kept_bits.h"

namespace fastreg::cpu {
namespace {

using at::Tensor;
using Call = ActDropoutCall<RandomState>;

// f(T{}, arguments) with the arguments of the kernels for tensors like x.
template <class F>
void with_arguments(const Tensor& x, const Call& call, F&& f) {
  dispatch_floating(x.scalar_type(), "act_dropout", [&](auto tag) {
    using T = decltype(tag);
    ActDropout<T> a{};
    a.act = call.act;
    a.drops = call.drops;
    if (call.residual.defined()) a.residual = const_data<T>(call.residual);

    std::vector<compute_t<T>> bias;
    if (call.bias.defined()) {
      const T* values = const_data<T>(call.bias);
      a.channels = call.bias.size(0);
      bias.resize(size_t(a.channels + kTile));
      for (int64_t c = 0; c < a.channels; ++c) bias[size_t(c)] = to_compute(values[c]);
      repeat(bias.data(), a.channels, int64_t(bias.size()));
      a.bias = bias.data();
    }

    a.drop = call.drop;
    KeptBits draws;
    if (call.drops && call.features) {
      a.features = *call.features;
      draws = KeptBits(x.numel() / a.features.period * a.features.width, call.drop);
      a.keep = draws.words();
    }
    f(tag, a);
  });
}

void forward(const Tensor& x, const Tensor& y, const Call& call) {
  with_arguments(x, call, [&](auto tag, const auto& arguments) {
    using T = decltype(tag);
    const T* from = const_data<T>(x);
    T* to = data<T>(y);
    in_parallel(x.numel(),
                [&](int64_t begin, int64_t end) { kernels<T>().act_dropout(from, to, begin, end, arguments); });
  });
}

void backward(const Tensor& dy, const Tensor& x, const Tensor& dx, const Call& call) {
  with_arguments(x, call, [&](auto tag, const auto& arguments) {
    using T = decltype(tag);
    const T *grad = const_data<T>(dy), *from = const_data<T>(x);
    T* to = data<T>(dx);
    in_parallel(x.numel(), [&](int64_t begin, int64_t end) {
      kernels<T>().act_dropout_backward(grad, from, to, begin, end, arguments);
    });
  });
}

struct ActDropoutBackend {
  using Dropout = DropoutBackend;
  static constexpr auto forward = cpu::forward;
  static constexpr auto backward = cpu::backward;
};

}  // namespace
}  // namespace fastreg::cpu

TORCH_LIBRARY_IMPL(fastreg, CPU, m) { fastreg::ActDropoutOperators<fastreg::cpu::ActDropoutBackend>::register_in(m); }
