// Runs of the self-test's kernels: each checks every value against a plain computation.
#pragma once

#include <functional>
#include <string>

#include "host_executor/executor.h"
#include "kernels.cuh"

namespace selftest {

struct Outcome {
  bool values_right = false;
  host_executor::Result result;
};

// A run of one kernel on its usual problem.
using Case = std::function<Outcome(const host_executor::Options&)>;

// Defined for Bug::none and for the bugs of the kernel that the case runs.
template <Bug bug>
Outcome normalise_rows_case(const host_executor::Options& options);
template <Bug bug>
Outcome count_positive_case(const host_executor::Options& options);
template <Bug bug>
Outcome copy_case(const host_executor::Options& options);
template <Bug bug>
Outcome cluster_sum_case(const host_executor::Options& options);
template <Bug bug>
Outcome grid_sum_case(const host_executor::Options& options);
template <Bug bug>
Outcome last_block_sum_case(const host_executor::Options& options);
template <Bug bug>
Outcome pipeline_case(const host_executor::Options& options);
template <Bug bug>
Outcome bulk_double_case(const host_executor::Options& options);
template <Bug bug>
Outcome overlap_case(const host_executor::Options& options);
Outcome fenced_last_block_sum_case(const host_executor::Options& options);

// The values of the test problems: small integers, whose sums are exact in any order.
inline float value(int64_t i) { return float(i * 7919 % 17 - 8); }

}  // namespace selftest

#include "cases.inl"
