// Division of the work, choice of the streamed batch norm kernels, and their launches.
#pragma once

#include <algorithm>

#include "kernels/batch_norm/streamed.cuh"
#include "kernels/batch_norm/streamed_plan.h"

namespace fastreg {

namespace streamed {

struct Plan {
  Division division;
  dim3 grid;
};

// Whose steps a thread has registers for, backward with an epilogue.
constexpr int kMostChannels = 4;

inline Plan plan_for(const BatchNormShape& s, int vector, const Device& device) {
  const StreamedSplits splits = streamed_splits(s, vector, device.threads, device.multiprocessors);
  const int64_t plane_vectors = s.rows ? 0 : s.size / vector;
  return {{s.channels, plane_vectors, splits.length, splits.split_length, splits.columns},
          dim3(unsigned(splits.groups), unsigned(splits.splits))};
}

inline LaunchConfig config_for(const Plan& plan, const Device& device, size_t shared_bytes = 0) {
  LaunchConfig config;
  config.grid = plan.grid;
  config.block = dim3(unsigned(device.threads));
  config.shared_bytes = shared_bytes;
  config.stream = device.stream;
  return config;
}

// f(V, kRows) with the widest vector that the layout and the pointers admit; in rows of at most kInRows elements.
template <class T, class E, int kInRows = kVector<T>, class F>
cudaError_t with_access(const BatchNormShape& s, bool all_aligned, F&& f) {
  using std::bool_constant;
  using std::integral_constant;
  constexpr int kWide = !is_fused<E> || moves_vectors(sizeof(T)) ? kVector<T> : 1;
  constexpr int kWideInRows = is_fused<E> ? std::min(kWide, kInRows) : kWide;
  const bool wide = all_aligned && (s.rows ? s.channels : s.size) % kWide == 0;
  if (s.rows)
    return wide ? f(integral_constant<int, kWideInRows>{}, bool_constant<true>{})
                : f(integral_constant<int, 1>{}, bool_constant<true>{});
  return wide ? f(integral_constant<int, kWide>{}, bool_constant<false>{})
              : f(integral_constant<int, 1>{}, bool_constant<false>{});
}

template <class T, class E>
cudaError_t launch_normalize(const T* x, T* y, const BatchNormShape& shape, const ChannelValues& weight,
                             const ChannelValues& bias, const ChannelStatistics& statistics,
                             int64_t* num_batches_tracked, const Device& device, const E& epilogue) {
  const bool aligned = is_aligned(x) && is_aligned(y) && is_aligned(epilogue);
  return with_access<T, E>(shape, aligned, [&](auto v, auto rows) {
    const Plan plan = plan_for(shape, v, device);
    return with_kernel_epilogue<v>(epilogue, [&](const auto& e) {
      return launch(config_for(plan, device), batch_norm_normalize_kernel<T, v, rows, std::decay_t<decltype(e)>>, x, y,
                    plan.division, weight, bias, statistics, num_batches_tracked, e);
    });
  });
}

}  // namespace streamed

template <class T, class E>
cudaError_t launch_batch_norm_statistics(const T* x, const BatchNormShape& shape, const ChannelStatistics& statistics,
                                         const RunningUpdate& running, const Workspace& workspace, const Device& device,
                                         const E& epilogue) {
  using namespace streamed;
  if constexpr (is_fused<E>) {
    if (!acts_before(epilogue))
      return launch_batch_norm_statistics<T>(x, shape, statistics, running, workspace, device, NoEpilogue{});
  }
  return with_access<T, E>(shape, is_aligned(x), [&](auto v, auto rows) {
    const Plan plan = plan_for(shape, v, device);
    const size_t shared = size_t(device.threads) / 2 * (rows ? v : 1) * sizeof(Moments<compute_t<T>>);
    return launch(config_for(plan, device, shared), batch_norm_moments_kernel<T, v, rows, E>, x, plan.division,
                  statistics, running, workspace, epilogue);
  });
}

template <class T, class E>
cudaError_t launch_batch_norm_train(const T* x, T* y, const BatchNormShape& shape, const ChannelValues& weight,
                                    const ChannelValues& bias, const ChannelStatistics& statistics,
                                    const RunningUpdate& running, const Workspace& workspace, const Device& device,
                                    const E& epilogue) {
  const cudaError_t error = launch_batch_norm_statistics(x, shape, statistics, running, workspace, device, epilogue);
  if (error != cudaSuccess) return error;
  return streamed::launch_normalize(x, y, shape, weight, bias, statistics, running.num_batches_tracked, device,
                                    epilogue);
}

template <class T, class E>
cudaError_t launch_batch_norm_eval(const T* x, T* y, const BatchNormShape& shape, const ChannelValues& weight,
                                   const ChannelValues& bias, const ChannelStatistics& statistics, const Device& device,
                                   const E& epilogue) {
  return streamed::launch_normalize(x, y, shape, weight, bias, statistics, nullptr, device, epilogue);
}

template <class T, class E>
cudaError_t launch_batch_norm_grad_input(const T* dy, const T* x, T* dx, const BatchNormShape& shape,
                                         const ChannelValues& weight, const ChannelStatistics& statistics,
                                         const void* coefficients, const Device& device, const E& epilogue) {
  using namespace streamed;
  const bool aligned = is_aligned(x) && is_aligned(dy) && is_aligned(dx) && is_aligned(epilogue);
  return with_access<T, E, kMostChannels>(shape, aligned, [&](auto v, auto rows) {
    const Plan plan = plan_for(shape, v, device);
    return with_kernel_epilogue<v>(epilogue, [&](const auto& e) {
      return launch(config_for(plan, device), batch_norm_grad_input_kernel<T, v, rows, std::decay_t<decltype(e)>>, dy,
                    x, dx, plan.division, weight, statistics, static_cast<const compute_t<T>*>(coefficients), e);
    });
  });
}

template <class T, class E>
cudaError_t launch_batch_norm_backward(const T* dy, const T* x, T* dx, const BatchNormShape& shape,
                                       const ChannelValues& weight, const ChannelStatistics& statistics,
                                       const ChannelValues& dweight, const ChannelValues& dbias, void* coefficients,
                                       const Workspace& workspace, const Device& device, const E& epilogue) {
  using namespace streamed;
  using A = compute_t<T>;
  A* const both = static_cast<A*>(coefficients);
  const bool training = statistics.stats != nullptr;
  E rest = epilogue;  // of the epilogue, for the second launch
  if (training || dweight.data != nullptr || dbias.data != nullptr || has_slope_gradient(epilogue)) {
    T* const dx_here = training ? nullptr : dx;
    const bool aligned = is_aligned(x) && is_aligned(dy) && is_aligned(dx_here) && is_aligned(epilogue);
    const cudaError_t error = with_access<T, E, kMostChannels>(shape, aligned, [&](auto v, auto rows) {
      const Plan plan = plan_for(shape, v, device);
      return with_kernel_epilogue<v>(epilogue, [&](const auto& e) {
        using Taken = std::decay_t<decltype(e)>;
        const size_t shared = size_t(device.threads) / 2 * (rows ? v : 1) * sizeof(typename Stages<T, Taken>::Totals);
        return launch(config_for(plan, device, shared), batch_norm_grad_sums_kernel<T, v, rows, Taken>, dy, x, dx_here,
                      plan.division, weight, statistics, dweight, dbias, both, workspace, e);
      });
    });
    if (error != cudaSuccess || !training) return error;
    rest = without_residual_gradient(epilogue);
  }
  if (dx == nullptr && !has_residual_gradient(rest)) return cudaSuccess;
  return launch_batch_norm_grad_input(dy, x, dx, shape, weight, statistics, both, device, rest);
}

// In namespace fastreg.
#define FASTREG_INSTANTIATE_STREAMED(T, E)                                                                             \
  template cudaError_t launch_batch_norm_statistics<T, E>(const T*, const BatchNormShape&, const ChannelStatistics&,   \
                                                          const RunningUpdate&, const Workspace&, const Device&,       \
                                                          const E&);                                                   \
  template cudaError_t launch_batch_norm_grad_input<T, E>(const T*, const T*, T*, const BatchNormShape&,               \
                                                          const ChannelValues&, const ChannelStatistics&, const void*, \
                                                          const Device&, const E&);                                    \
  template cudaError_t launch_batch_norm_train<T, E>(const T*, T*, const BatchNormShape&, const ChannelValues&,        \
                                                     const ChannelValues&, const ChannelStatistics&,                   \
                                                     const RunningUpdate&, const Workspace&, const Device&, const E&); \
  template cudaError_t launch_batch_norm_eval<T, E>(const T*, T*, const BatchNormShape&, const ChannelValues&,         \
                                                    const ChannelValues&, const ChannelStatistics&, const Device&,     \
                                                    const E&);                                                         \
  template cudaError_t launch_batch_norm_backward<T, E>(                                                               \
      const T*, const T*, T*, const BatchNormShape&, const ChannelValues&, const ChannelStatistics&,                   \
      const ChannelValues&, const ChannelValues&, void*, const Workspace&, const Device&, const E&)

}  // namespace fastreg
