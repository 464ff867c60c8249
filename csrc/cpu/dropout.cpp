// Dropout on the CPU.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>

#include "../dispatch.h"
#include "../dropout_operators.h"
#include "kernels.h"

namespace fastreg::cpu {
namespace {

// Elements that are worth another thread; a multiple of the 64 that the kernels take at a time.
constexpr int64_t kGrain = 32768;

struct DropoutBackend {
  using State = RandomState;

  struct Call {
    explicit Call(const at::Tensor&) {}

    State given(const at::Tensor& rng_state) const {
      const auto values = rng_state.accessor<int64_t, 1>();
      return State{uint64_t(values[0]), uint64_t(values[1])};
    }

    // The seed is the value that torch.randint(-2**63, 2**63 - 1, ()) would have drawn in its place.
    State drawn(at::Tensor& rng_state) const {
      auto* generator = at::check_generator<at::CPUGeneratorImpl>(at::detail::getDefaultCPUGenerator());
      const std::lock_guard<std::mutex> lock(generator->mutex_);
      const State state = {generator->random64() % ~uint64_t(0) - (uint64_t(1) << 63), 0};
      auto* values = rng_state.mutable_data_ptr<int64_t>();
      values[0] = int64_t(state.seed);
      values[1] = int64_t(state.offset);
      return state;
    }

    void apply(const at::Tensor& x, const at::Tensor& y, double p, const State& state, const IndexMap& map) const {
      const DropoutArguments arguments = {state, drop_threshold(p), keep_scale(p), map};
      dispatch_floating(x.scalar_type(), "dropout", [&](auto tag) {
        using T = decltype(tag);
        const T* from = const_data<T>(x);
        T* to = data<T>(y);
        const auto kernel = kernels<T>().dropout;
        const int64_t n = x.numel(), pieces = (n + kGrain - 1) / kGrain;
        at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
          kernel(from, to, begin * kGrain, std::min(end * kGrain, n), arguments);
        });
      });
    }
  };
};

}  // namespace
}  // namespace fastreg::cpu

TORCH_LIBRARY_IMPL(fastreg, CPU, m) { fastreg::DropoutOperators<fastreg::cpu::DropoutBackend>::register_in(m); }
