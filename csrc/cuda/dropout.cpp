// Dropout on CUDA devices.
#include "../kernels/dropout.h"

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include "../dispatch.h"
#include "../dropout_operators.h"
#include "call.h"

namespace fastreg::cuda {
namespace {

struct DropoutBackend {
  using State = StateSource;

  class Call {
   public:
    explicit Call(const at::Tensor& input) : guard_(input) {}

    State given(const at::Tensor& rng_state) const {
      State state;
      const int64_t* values = rng_state.const_data_ptr<int64_t>();
      if (rng_state.is_cuda()) {
        state.seed_pointer = values;
        state.offset_pointer = values + rng_state.stride(0);
      } else {
        TORCH_CHECK(c10::cuda::currentStreamCaptureStatusMayInitCtx() == c10::cuda::CaptureStatus::None,
                    "dropout: rng_state must be on the input's device while a CUDA graph is captured (its values "
                    "would be frozen in the graph), got ",
                    rng_state.device());
        state.seed = uint64_t(values[0]);
        state.offset = uint64_t(values[rng_state.stride(0)]);
      }
      return state;
    }

    State drawn(at::Tensor& rng_state) const {
      auto* generator = at::check_generator<at::CUDAGeneratorImpl>(at::cuda::detail::getDefaultCUDAGenerator());
      const std::lock_guard<std::mutex> lock(generator->mutex_);
      const at::PhiloxCudaState philox = generator->philox_cuda_state(kStateAdvance);
      State state;
      if (philox.captured_) {
        state.seed_pointer = philox.seed_.ptr;
        state.offset_pointer = philox.offset_.ptr;
        state.offset = philox.offset_intragraph_;
      } else {
        state.seed = philox.seed_.val;
        state.offset = philox.offset_.val;
      }
      state.used = rng_state.mutable_data_ptr<int64_t>();
      return state;
    }

    void apply(const at::Tensor& x, const at::Tensor& y, double p, const State& state, const IndexMap& map) const {
      const DropoutParameters parameters = {state, drop_threshold(p), keep_scale(p), map};
      dispatch_floating(x.scalar_type(), "dropout", [&](auto tag) {
        using T = decltype(tag);
        check("dropout", launch_dropout(const_data<T>(x), data<T>(y), x.numel(), parameters, current_device()));
      });
    }

   private:
    Guard guard_;
  };
};

}  // namespace
}  // namespace fastreg::cuda

TORCH_LIBRARY_IMPL(fastreg, CUDA, m) { fastreg::DropoutOperators<fastreg::cuda::DropoutBackend>::register_in(m); }
