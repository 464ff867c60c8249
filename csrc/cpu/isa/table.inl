// The kernels of one instruction set as tables. Included last by each csrc/cpu/isa/*.cpp.
#pragma once

#include "cpu/isa/simd_partial.h"

#include "cpu/isa/batch_norm.inl"
#include "cpu/isa/dropout.inl"
#include "cpu/isa/feature_dropout.inl"

#include "cpu/isa/activation.inl"
#include "cpu/isa/tile.inl"

#include "cpu/isa/section_tiles.inl"

#include "cpu/isa/prelu.inl"

#include "cpu/isa/act_dropout.inl"
#include "cpu/isa/batch_norm_bare.inl"

#include "cpu/isa/batch_norm_act.inl"

namespace fastreg::cpu::FASTREG_ISA {

template <class T>
const Kernels<T>& table() {
  static constexpr Kernels<T> kTable = {
      keep_bits,
      dropout<T>,
      feature_dropout<T>,
      moments<T>,
      normalize<T>,
      grad_sums<T>,
      grad_input<T>,
      moments_of_section<T>,
      normalize_section<T>,
      grad_sums_of_section<T>,
      grad_input_of_section<T>,
      act_dropout<T>,
      act_dropout_backward<T>,
  };
  return kTable;
}

template const Kernels<float>& table<float>();
template const Kernels<double>& table<double>();
template const Kernels<half>& table<half>();
template const Kernels<bfloat16>& table<bfloat16>();

}  // namespace fastreg::cpu::FASTREG_ISA
