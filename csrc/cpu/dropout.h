// What the operators with dropout need of the CPU: see csrc/operators/dropout.h.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>

#include "cpu/isa/kernels.h"
#include "operators/dispatch.h"
#include "operators/dropout.h"

namespace fastreg::cpu {

// Elements that are worth another thread; a multiple of the 64 that the kernels take at a time.
constexpr int64_t kGrain = 32768;

template <class F>
void in_parallel(int64_t n, F&& f) {
  at::parallel_for(0, (n + kGrain - 1) / kGrain, 1,
                   [&](int64_t begin, int64_t end) { f(begin * kGrain, std::min(end * kGrain, n)); });
}

struct DropoutBackend {
  using State = RandomState;

  struct Call {
    explicit Call(const at::Tensor&) {}

    State given(const at::Tensor& rng_state) const {
      const auto values = rng_state.accessor<int64_t, 1>();
      return State{uint64_t(values[0]), uint64_t(values[1])};
    }

    // The seed is the value that torch.randint(-2**63, 2**63 - 1, ()) would have drawn in its place.
    State drawn(at::Tensor& rng_state, const std::optional<at::Generator>& given) const {
      auto* generator = at::get_generator_or_default<at::CPUGeneratorImpl>(given, at::detail::getDefaultCPUGenerator());
      const std::lock_guard<std::mutex> lock(generator->mutex_);
      const State state = {generator->random64() % ~uint64_t(0) - (uint64_t(1) << 63), 0};
      auto* values = rng_state.mutable_data_ptr<int64_t>();
      values[0] = int64_t(state.seed);
      values[1] = int64_t(state.offset);
      return state;
    }

    void apply(const at::Tensor& x, const at::Tensor& y, const DropoutArguments& drop) const {
      dispatch_floating(x.scalar_type(), "dropout", [&](auto tag) {
        using T = decltype(tag);
        const T* from = const_data<T>(x);
        T* to = data<T>(y);
        in_parallel(x.numel(), [&](int64_t begin, int64_t end) { kernels<T>().dropout(from, to, begin, end, drop); });
      });
    }

    // The draws first, a bit each: they are few.
    void apply_features(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& y,
                        const FeatureMap& features, const DropoutArguments& drop) const {
      dispatch_floating(x.scalar_type(), "feature_dropout", [&](auto tag) {
        using T = decltype(tag);
        const int64_t n = x.numel(), draws = n / features.period * features.width;
        std::vector<uint64_t> keep(size_t((draws + 63) / 64 + 1));
        in_parallel(draws, [&](int64_t begin, int64_t end) {
          kernels<T>().keep_bits(keep.data() + begin / 64, begin, end, drop);
        });
        const T *from = const_data<T>(x), *add = residual.defined() ? const_data<T>(residual) : nullptr;
        T* to = data<T>(y);
        in_parallel(n, [&](int64_t begin, int64_t end) {
          kernels<T>().feature_dropout(from, add, to, begin, end, keep.data(), features, drop.transform);
        });
      });
    }
  };
};

}  // namespace fastreg::cpu
