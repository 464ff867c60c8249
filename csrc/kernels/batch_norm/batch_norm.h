// Launch functions of the batch norm kernels.
#pragma once

#include <type_traits>

#include "kernels/batch_norm/plan.h"
#include "kernels/common/runtime.h"
#include "kernels/common/types.h"

namespace fastreg {

// One value per channel, contiguous: a parameter or a statistic, in fp32 or in the input's type. data may be null.
struct ChannelValues {
  void* data = nullptr;
  bool is_float = false;
};

// What normalisation uses. In training: stats, the [3, channels] array (centre, mean - centre, 1 / deviation) of
// compute type. In evaluation stats is null and the running statistics count.
struct ChannelStatistics {
  void* stats = nullptr;
  ChannelValues running_mean, running_var;
  double eps = 0;
};

// Scratch memory of one call, of the sizes that batch_norm_workspace asks for.
struct Workspace {
  void* partials = nullptr;     // any contents
  unsigned* tickets = nullptr;  // zeros
};
struct WorkspaceSize {
  int64_t partial_bytes, tickets;
};
// element_bytes: sizeof(T). Enough for forward and backward, with any epilogue; zero where none needs any.
WorkspaceSize batch_norm_workspace(int element_bytes, const BatchNormShape& shape, const Device& device);

struct RunningUpdate {
  ChannelValues mean, var;
  int64_t* num_batches_tracked = nullptr;  // incremented
  bool cumulative = false;                 // factor is 1 / (num_batches_tracked + 1)
  double factor = 0;
};

// What is computed besides normalising: nothing, or a SlopedEpilogue<T> (epilogue.h).
struct NoEpilogue {};
template <class E>
constexpr bool is_fused = !std::is_same_v<E, NoEpilogue>;

// All functions: no dimension of the shape is zero. Tensors are dense, of any alignment that T needs. E: NoEpilogue or
// SlopedEpilogue<T>.

// Training statistics of x into statistics.stats, running statistics updated; then y normalised with them. Two
// launches.
template <class T, class E = NoEpilogue>
cudaError_t launch_batch_norm_train(const T* x, T* y, const BatchNormShape& shape, const ChannelValues& weight,
                                    const ChannelValues& bias, const ChannelStatistics& statistics,
                                    const RunningUpdate& running, const Workspace& workspace, const Device& device,
                                    const E& epilogue = {});

// y normalised with the running statistics. One launch.
template <class T, class E = NoEpilogue>
cudaError_t launch_batch_norm_eval(const T* x, T* y, const BatchNormShape& shape, const ChannelValues& weight,
                                   const ChannelValues& bias, const ChannelStatistics& statistics, const Device& device,
                                   const E& epilogue = {});

// Gradients, of training where statistics.stats is set, else of evaluation. dx, dweight.data, dbias.data may be null:
// not wanted. coefficients: scratch, [2, channels] of compute type. Two launches in training, one in evaluation.
template <class T, class E = NoEpilogue>
cudaError_t launch_batch_norm_backward(const T* dy, const T* x, T* dx, const BatchNormShape& shape,
                                       const ChannelValues& weight, const ChannelStatistics& statistics,
                                       const ChannelValues& dweight, const ChannelValues& dbias, void* coefficients,
                                       const Workspace& workspace, const Device& device, const E& epilogue = {});

// ---- A batch in several parts ----

// A part's statistics into statistics.stats, and nothing else. One launch.
template <class T, class E = NoEpilogue>
cudaError_t launch_batch_norm_statistics(const T* x, const BatchNormShape& shape, const ChannelStatistics& statistics,
                                         const RunningUpdate& running, const Workspace& workspace, const Device& device,
                                         const E& epilogue = {});

// The statistics of all parts: see merge.h. stats: [3, channels]. count: values per channel. Running statistics are of
// type A; num_batches_tracked already counts this batch. One launch; channels is not zero.
template <class A>
cudaError_t launch_batch_norm_merge(const A* moments, int64_t parts, int64_t channels, double eps, A* stats,
                                    double* count, const RunningUpdate& running, const Device& device);

// dx of a part. coefficients: [2, channels] of compute type, of all parts: mean of dy, and the slope with which dx
// depends on x - mean, mean of dy * x_hat / deviation. One launch.
template <class T, class E = NoEpilogue>
cudaError_t launch_batch_norm_grad_input(const T* dy, const T* x, T* dx, const BatchNormShape& shape,
                                         const ChannelValues& weight, const ChannelStatistics& statistics,
                                         const void* coefficients, const Device& device, const E& epilogue = {});

}  // namespace fastreg
