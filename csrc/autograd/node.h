// The nodes that the operators put into autograd's graph, like those that torch generates for its own: tensors are
// kept as SavedVariables, which notice when they are written to, and everything else in fields.
#pragma once

#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "autograd/calls.h"

namespace fastreg {

// What a Derivative is, of a function of kInputs tensors with one output:
//   kName, kInputs, kSaved          the node's name, and how many inputs it has and tensors it keeps: some may be
//                                   undefined
//   for_each_field(self, f)         f(self.field) for all of its fields: bool, int64_t, double, vectors of c10::SymInt,
//                                   and std::optional of these
//   d(grad_output, saved, wanted)   the gradients of the inputs; those that are not wanted may be undefined
//   d.explain(error)                adds what there is to say where a tensor was written to since
template <size_t kInputCount, size_t kSavedCount>
struct Derivative {
  static constexpr size_t kInputs = kInputCount, kSaved = kSavedCount;
  using Gradients = std::array<at::Tensor, kInputs>;
  using Saved = std::array<at::Tensor, kSaved>;
  using Wanted = std::array<bool, kInputs>;

  void explain(c10::Error&) const {}
};

// For a batch norm in evaluation, which keeps running statistics, too, and training updates these in place.
inline void explain_running_statistics(c10::Error& error) {
  if (std::strstr(error.what_without_backtrace(), "modified by an inplace operation"))
    error.add_context(
        "batch_norm in evaluation: if the tensor is one of its running statistics, a forward pass in training has "
        "updated it since; the gradient of what was computed before is lost then: call backward before that pass");
}

template <class D>
class DerivativeNode final : public torch::autograd::Node {
  using variable_list = torch::autograd::variable_list;
  using Saved = typename D::Saved;
  using Wanted = typename D::Wanted;

 public:
  DerivativeNode(torch::autograd::edge_list&& inputs, D&& derivative, const Saved& saved)
      : Node(std::move(inputs)), derivative_(std::move(derivative)) {
    for (size_t i = 0; i < D::kSaved; ++i) saved_[i] = torch::autograd::SavedVariable(saved[i], false);
  }

  std::string name() const override { return D::kName; }

  variable_list apply(variable_list&& grad_outputs) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grad_outputs[0].defined()) return variable_list(D::kInputs);
    return gradients(derivative_, grad_outputs[0], unpack(), wanted());
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved_) variable.reset_data();
  }

  // ---- Compiled autograd: what the node depends on, and a call of its derivative as a function of that ----

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    for (const auto& variable : saved_) args.collect(variable, false);
    D::for_each_field(derivative_, [&](const auto& field) { args.collect(field); });
  }

  variable_list apply_with_saved(const variable_list& grad_outputs,
                                 torch::dynamo::autograd::SwapSavedVariables& swapped) override {
    for (auto& variable : saved_) swapped.before(variable);
    D::for_each_field(derivative_, [&](auto& field) { swapped.before(field); });

    torch::dynamo::autograd::PackedArgs packed;
    const Saved saved = unpack();
    const Wanted is_wanted = wanted();
    packed.pack(variable_list(saved.begin(), saved.end()));
    packed.pack(std::vector<bool>(is_wanted.begin(), is_wanted.end()));
    D::for_each_field(derivative_, [&](const auto& field) { packed.pack(field); });
    const std::vector<at::IValue> arguments = std::move(packed).vec();
    std::vector<at::TypePtr> schema;
    for (const at::IValue& each : arguments) schema.push_back(each.type());

    const auto& python = torch::dynamo::autograd::getPyCompilerInterface();
    const std::string function = python->bind_function(swapped.get_py_compiler(), D::kName, apply_packed, schema,
                                                       /*is_custom_function=*/true, /*is_traceable=*/true);
    const auto metadata =
        torch::dynamo::autograd::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            torch::dynamo::autograd::get_input_metadata(next_edges()));
    variable_list results = python->call_function(swapped.get_py_compiler(), "apply_functional", function, grad_outputs,
                                                  arguments, metadata);

    for (auto& variable : saved_) swapped.after(variable);
    D::for_each_field(derivative_, [&](auto& field) { swapped.after(field); });
    return results;
  }

 private:
  static variable_list apply_packed(const variable_list& grad_outputs, const std::vector<at::IValue>& arguments) {
    torch::dynamo::autograd::PackedArgs packed(arguments);
    const auto tensors = packed.unpack<variable_list>();
    const auto flags = packed.unpack<std::vector<bool>>();
    D derivative;
    D::for_each_field(derivative, [&](auto& field) { field = packed.unpack<std::decay_t<decltype(field)>>(); });
    if (!grad_outputs[0].defined()) return variable_list(D::kInputs);
    Saved saved;
    std::copy(tensors.begin(), tensors.end(), saved.begin());
    Wanted is_wanted;
    std::copy(flags.begin(), flags.end(), is_wanted.begin());
    return gradients(derivative, grad_outputs[0], saved, is_wanted);
  }

  static variable_list gradients(const D& derivative, const at::Tensor& grad_output, const Saved& saved,
                                 const Wanted& is_wanted) {
    typename D::Gradients each = derivative(grad_output, saved, is_wanted);
    variable_list all(D::kInputs);
    for (size_t i = 0; i < D::kInputs; ++i)
      if (is_wanted[i]) all[i] = std::move(each[i]);
    return all;
  }

  Saved unpack() const {
    Saved saved;
    try {
      for (size_t i = 0; i < D::kSaved; ++i) saved[i] = saved_[i].unpack();
    } catch (c10::Error& error) {
      derivative_.explain(error);
      throw;
    }
    return saved;
  }
  Wanted wanted() const {
    Wanted each;
    for (size_t i = 0; i < D::kInputs; ++i) each[i] = task_should_compute_output(i);
    return each;
  }

  D derivative_;
  std::array<torch::autograd::SavedVariable, D::kSaved> saved_;
};

// torch hands nodes about by one kind of pointer or, until 2.12, another.
using NodePointer = decltype(torch::autograd::Edge::function);

template <class D>
NodePointer make_node(torch::autograd::edge_list&& inputs, D&& derivative, const typename D::Saved& saved) {
  using Node = DerivativeNode<D>;
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<torch::autograd::Node>>)
    return NodePointer(new Node(std::move(inputs), std::move(derivative), saved), [](auto* node) { deleteNode(node); });
  else
    return c10::make_intrusive<Node>(std::move(inputs), std::move(derivative), saved);
}

// Tells autograd what the derivative of output is with respect to inputs, D::kInputs tensors, undefined ones among
// them or None.
template <class D, class... Inputs>
void record(const at::Tensor& output, D&& derivative, const typename D::Saved& saved, const Inputs&... inputs) {
  static_assert(sizeof...(Inputs) == D::kInputs);
  set_history(output, make_node(torch::autograd::collect_next_edges(inputs...), std::move(derivative), saved));
}

}  // namespace fastreg
