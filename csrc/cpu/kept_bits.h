// The draws of a dropout as an array of bits, made by all threads, for kernels that need them in another order than
// that of the stream, or more than once. A 32nd of the size of a tensor of floats.
#pragma once

#include <ATen/Parallel.h>

#include <memory>

#include "cpu/isa/kernels.h"

namespace fastreg::cpu {

class KeptBits {
 public:
  KeptBits() = default;
  KeptBits(int64_t draws, const DropoutArguments& drop) : words_(new uint64_t[size_t((draws + 63) / 64 + 1)]) {
    constexpr int64_t kGrain = 32768;  // draws that are worth another thread; a multiple of 64
    words_[(draws + 63) / 64] = 0;
    at::parallel_for(0, (draws + kGrain - 1) / kGrain, 1, [&](int64_t first, int64_t last) {
      const int64_t begin = first * kGrain, end = std::min(last * kGrain, draws);
      kernels<float>().keep_bits(words_.get() + begin / 64, begin, end, drop);
    });
  }

  // Bit i: whether draw i keeps; a word beyond them may be read. Null if there are none.
  const uint64_t* words() const { return words_.get(); }

 private:
  std::unique_ptr<uint64_t[]> words_;
};

}  // namespace fastreg::cpu
