// Operators that write to tensors which are lazily negated, as x.conj().imag is: torch's own fallback for these takes
// no operator but one that returns what it wrote to.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <utility>
#include <vector>

namespace fastreg {
namespace {

// The operator on copies that are negated in memory, and what it wrote to them back to the tensors.
void on_copies(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto& declared = op.schema().arguments();
  const size_t first = stack->size() - declared.size();
  std::vector<std::pair<at::Tensor, at::Tensor>> written;
  for (size_t i = 0; i < declared.size(); ++i) {
    c10::IValue& argument = (*stack)[first + i];
    if (!argument.isTensor() || !argument.toTensor().is_neg()) continue;
    const at::Tensor tensor = argument.toTensor(), copy = tensor.resolve_neg();
    if (declared[i].alias_info() && declared[i].alias_info()->isWrite()) written.emplace_back(tensor, copy);
    argument = copy;
  }
  op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::Negative), stack);
  for (const auto& [tensor, copy] : written) tensor.copy_(copy);
}

}  // namespace
}  // namespace fastreg

TORCH_LIBRARY_IMPL(fastreg, Negative, m) {
  for (const char* name :
       {"dropout_", "dropout_seeded_", "feature_dropout_", "feature_dropout_seeded_", "batch_norm_train",
        "batch_norm_merge", "batch_norm_act_train", "batch_norm_act_train_seeded"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fastreg::on_copies>());
}
