// torch's own dropout and batch norm operators, computed by fastreg's while they are patched.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastreg {

// A call of one of torch's operators. why_left: why it is left to torch's own kernel; null where it is taken over.
// draws: of dropout's mask. records: whether autograd records the call.
struct PatchedCall {
  const char* op;
  const at::Tensor& input;
  int64_t draws;
  bool records;
  const char* why_left;
};

// is_plain: whether a Python object, of a tensor with a dispatch of its own, only stands for a plain tensor in what a
// compiler traces; fastreg's operators take no others.
void patch_torch(bool (*is_plain)(void* object));
void unpatch_torch();
bool is_patched();

// Called at each call, before it is made; null: nobody is.
void observe_patched(void (*observer)(const PatchedCall&));

// Whether dropout goes by the operator patched_dropout, which is Python's: there calls are given their random states.
void give_states_to_patched(bool given);

}  // namespace fastreg
