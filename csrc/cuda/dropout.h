// What the operators with dropout need of CUDA devices: see csrc/operators/dropout.h.
#pragma once

#include "kernels/dropout/feature_dropout.h"

#include "cuda/call.h"
#include "operators/dispatch.h"
#include "operators/dropout.h"

namespace fastreg::cuda {

struct DropoutBackend {
  using State = StateSource;

  class Call {
   public:
    explicit Call(const at::Tensor& input) : guard_(input) {}

    State given(const at::Tensor& rng_state) const {
      State state;
      const int64_t* values = rng_state.const_data_ptr<int64_t>();
      if (is_on_device(rng_state)) {
        state.seed_pointer = values;
        state.offset_pointer = values + rng_state.stride(0);
      } else {
        TORCH_CHECK(!is_capturing(),
                    "dropout: rng_state must be on the input's device while a CUDA graph is captured, or its values "
                    "would be frozen in the graph, got ",
                    rng_state.device());
        state.seed = uint64_t(values[0]);
        state.offset = uint64_t(values[rng_state.stride(0)]);
      }
      return state;
    }

    State drawn(at::Tensor& rng_state, const std::optional<at::Generator>& generator) const {
      State state = next_random_state(generator);
      state.used = rng_state.mutable_data_ptr<int64_t>();
      return state;
    }

    void apply(const at::Tensor& x, const at::Tensor& y, const DropoutParameters& parameters) const {
      dispatch_floating(x.scalar_type(), "dropout", [&](auto tag) {
        using T = decltype(tag);
        check("dropout", launch_dropout(const_data<T>(x), data<T>(y), x.numel(), parameters, current_device()));
      });
    }

    void apply_features(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& y,
                        const FeatureMap& features, const DropoutParameters& parameters) const {
      dispatch_floating(x.scalar_type(), "feature_dropout", [&](auto tag) {
        using T = decltype(tag);
        const T* add = residual.defined() ? const_data<T>(residual) : nullptr;
        check("feature_dropout", launch_feature_dropout(const_data<T>(x), add, data<T>(y), x.numel(), features,
                                                        parameters, current_device()));
      });
    }

   private:
    Guard guard_;
  };
};

}  // namespace fastreg::cuda
