// Huge pages for large results. The allocator maps large tensors afresh, and the first touch of each page of 4 KiB
// costs more than all the arithmetic on it: 64 MB take 16 000 such faults, or 32 of 2 MiB.
#pragma once

#include <ATen/core/Tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastreg::cpu {

// Asks the system to back a tensor that is about to be written with huge pages, as far as it is not in memory yet. Only
// those pages are concerned that lie in the tensor as a whole, so that no memory is lost.
inline void advise_huge_pages([[maybe_unused]] const at::Tensor& tensor) {
#if defined(MADV_HUGEPAGE)
  constexpr size_t kPage = size_t(2) << 20;
  const size_t begin = reinterpret_cast<size_t>(tensor.data_ptr());
  const size_t first = (begin + kPage - 1) / kPage * kPage, last = (begin + tensor.nbytes()) / kPage * kPage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a refusal costs time alone
#endif
}

}  // namespace fastreg::cpu
