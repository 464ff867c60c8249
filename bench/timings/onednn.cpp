// oneDNN's batch normalisation and dropout behind functions of C, for bench/timings/onednn.py, which builds this.
//
// An operator is made for one shape; it is run on memory that the caller has. Pointers that a run does not need are
// null. Each function returns null or nonzero where oneDNN throws, and last_error tells what it said.

#include <oneapi/dnnl/dnnl.hpp>

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

using namespace dnnl;

namespace {

enum Layout { plain, channels_last, blocked };  // blocked: 16 channels side by side

std::string error_text;

struct Device {
  engine cpu{engine::kind::cpu, 0};
  stream queue{cpu};
};

Device& device() {
  static Device only;
  return only;
}

memory::desc describe(int rank, const int64_t* sizes, int layout, bool bf16) {
  using tag = memory::format_tag;
  static const tag tags[3][3] = {
      {tag::ncw, tag::nwc, tag::nCw16c}, {tag::nchw, tag::nhwc, tag::nChw16c}, {tag::ncdhw, tag::ndhwc, tag::nCdhw16c}};
  memory::dims dims(sizes, sizes + rank);
  if (rank == 1) dims.insert(dims.begin(), 1);  // dropout has no kernel for vectors
  return {dims, bf16 ? memory::data_type::bf16 : memory::data_type::f32, rank < 3 ? tag::nc : tags[rank - 3][layout]};
}

// Memory of the descriptor at a pointer: a view, made anew for each run, as the caller's tensors are.
memory at(const memory::desc& desc, void* data) { return memory(desc, device().cpu, data); }

template <typename Work>
auto guarded(Work&& work) -> decltype(work()) {
  try {
    return work();
  } catch (const std::exception& error) {
    error_text = error.what();
    return {};
  }
}

struct BatchNorm {
  memory::desc data, channel, gate;
  batch_normalization_forward forward;
  batch_normalization_backward backward;

  BatchNorm(int rank, const int64_t* sizes, int layout, bool bf16, bool relu, bool evaluation, float eps)
      : data(describe(rank, sizes, layout, bf16)), channel({sizes[1]}, memory::data_type::f32, memory::format_tag::a) {
    using flag = normalization_flags;
    auto flags = flag::use_scale | flag::use_shift;
    if (relu) flags = flags | flag::fuse_norm_relu;
    if (evaluation) flags = flags | flag::use_global_stats;
    auto kind = evaluation ? prop_kind::forward_inference : prop_kind::forward_training;
    batch_normalization_forward::primitive_desc first(device().cpu, kind, data, data, eps, flags);
    forward = batch_normalization_forward(first);
    if (evaluation) return;
    gate = first.workspace_desc();
    backward = batch_normalization_backward(batch_normalization_backward::primitive_desc(
        device().cpu, prop_kind::backward, data, data, data, eps, flags, first));
  }
};

struct Dropout {
  memory::desc data;
  eltwise_forward forward;
  float p;

  Dropout(int rank, const int64_t* sizes, int layout, bool bf16, float p)
      : data(describe(rank, sizes, layout, bf16)), p(p) {
    primitive_attr attributes;
    attributes.set_dropout(memory::desc(), memory::data_type::s64, true, true);  // no mask; seed and offset
    forward = eltwise_forward(eltwise_forward::primitive_desc(
        device().cpu, prop_kind::forward_inference, algorithm::eltwise_linear, data, data, 1.0f, 0.0f, attributes));
  }
};

template <typename Primitive>
int run(Primitive& primitive, std::unordered_map<int, memory> arguments) {
  primitive.execute(device().queue, arguments);
  device().queue.wait();
  return 1;
}

}  // namespace

extern "C" {

const char* last_error() { return error_text.c_str(); }

void* make_batch_norm(int rank, const int64_t* sizes, int layout, int bf16, int relu, int evaluation, float eps) {
  return guarded([&] { return new BatchNorm(rank, sizes, layout, bf16, relu, evaluation, eps); });
}

// Bytes of the gate of a fused relu, between forward and backward.
int64_t gate_bytes(void* op) { return static_cast<BatchNorm*>(op)->gate.get_size(); }

int batch_norm_forward(void* op, void* x, void* weight, void* bias, void* mean, void* variance, void* gate, void* y) {
  auto& norm = *static_cast<BatchNorm*>(op);
  return guarded([&] {
    std::unordered_map<int, memory> arguments = {{DNNL_ARG_SRC, at(norm.data, x)},
                                                 {DNNL_ARG_SCALE, at(norm.channel, weight)},
                                                 {DNNL_ARG_SHIFT, at(norm.channel, bias)},
                                                 {DNNL_ARG_MEAN, at(norm.channel, mean)},
                                                 {DNNL_ARG_VARIANCE, at(norm.channel, variance)},
                                                 {DNNL_ARG_DST, at(norm.data, y)}};
    if (norm.gate.get_size()) arguments.insert({DNNL_ARG_WORKSPACE, at(norm.gate, gate)});
    return run(norm.forward, arguments);
  });
}

int batch_norm_backward(void* op, void* x, void* weight, void* bias, void* mean, void* variance, void* gate, void* dy,
                        void* dx, void* dweight, void* dbias) {
  auto& norm = *static_cast<BatchNorm*>(op);
  return guarded([&] {
    std::unordered_map<int, memory> arguments = {{DNNL_ARG_SRC, at(norm.data, x)},
                                                 {DNNL_ARG_SCALE, at(norm.channel, weight)},
                                                 {DNNL_ARG_SHIFT, at(norm.channel, bias)},
                                                 {DNNL_ARG_MEAN, at(norm.channel, mean)},
                                                 {DNNL_ARG_VARIANCE, at(norm.channel, variance)},
                                                 {DNNL_ARG_DIFF_DST, at(norm.data, dy)},
                                                 {DNNL_ARG_DIFF_SRC, at(norm.data, dx)},
                                                 {DNNL_ARG_DIFF_SCALE, at(norm.channel, dweight)},
                                                 {DNNL_ARG_DIFF_SHIFT, at(norm.channel, dbias)}};
    if (norm.gate.get_size()) arguments.insert({DNNL_ARG_WORKSPACE, at(norm.gate, gate)});
    return run(norm.backward, arguments);
  });
}

void free_batch_norm(void* op) { delete static_cast<BatchNorm*>(op); }

void* make_dropout(int rank, const int64_t* sizes, int layout, int bf16, float p) {
  return guarded([&] { return new Dropout(rank, sizes, layout, bf16, p); });
}

// Forward of x, and with the same seed backward of a gradient.
int apply_dropout(void* op, int64_t seed, void* x, void* y) {
  auto& dropout = *static_cast<Dropout*>(op);
  return guarded([&] {
    auto integer = memory::desc::host_scalar(memory::data_type::s64);
    auto real = memory::desc::host_scalar(memory::data_type::f32);
    return run(dropout.forward, {{DNNL_ARG_SRC, at(dropout.data, x)},
                                 {DNNL_ARG_DST, at(dropout.data, y)},
                                 {DNNL_ARG_ATTR_DROPOUT_PROBABILITY, memory(real, dropout.p)},
                                 {DNNL_ARG_ATTR_DROPOUT_SEED, memory(integer, seed)},
                                 {DNNL_ARG_ATTR_DROPOUT_OFFSET, memory(integer, int64_t{0})}});
  });
}

void free_dropout(void* op) { delete static_cast<Dropout*>(op); }
}
