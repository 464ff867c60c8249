// The CPU kernels, free of torch: one table of functions per element type, compiled once per instruction set.
// Each function works through a range in one thread; csrc/cpu/*.cpp divide the work.
#pragma once

#include <cstring>
#include <type_traits>

#include "kernels/common/activation.h"
#include "kernels/common/types.h"
#include "kernels/dropout/stream.h"

namespace fastreg::cpu {

using DropoutArguments = DropoutCall<RandomState>;

// The length of an array of per-channel sums: whole vectors can be read and written at its end.
constexpr int64_t padded(int64_t channels) { return (channels + 63) / 64 * 64; }

// Rows of few channels lie together: fused kernels take some as one, of at least so many elements, fewer than twice
// that.
constexpr int64_t kWideRow = 64;
constexpr int64_t wide_row(int64_t channels) {
  int64_t elements = channels;
  while (elements < kWideRow) elements *= 2;
  return elements;
}

// The length of an array of per-channel coefficients, over and over: a vector can start at any element of a wide row.
constexpr int64_t repeated(int64_t channels) { return padded(wide_row(channels) + 31); }

// Fills an array of so many values with its first `have`, over and over.
template <class V>
void repeat(V* values, int64_t have, int64_t length) {
  for (; have < length; have *= 2)
    std::memcpy(values + have, values, size_t(have < length - have ? have : length - have) * sizeof(V));
}

// Per-channel coefficients, each an array of repeated(channels). x stands for an input element of the channel.
// Forward: y = ((x - centre) - delta) * scale + shift.
template <class C>
struct ForwardCoefficients {
  const C *centre, *delta, *scale, *shift;
};
// Backward: dx = (dy - mean_dy - ((x - centre) - delta) * slope) * scale.
template <class C>
struct BackwardCoefficients {
  const C *centre, *delta, *scale, *mean_dy, *slope;
};

// Contiguous layout: [samples, channels, size]. Element e of a channel is element e mod size of sample e div size.
struct Planes {
  int64_t samples, channels, size;
  bool cached;   // whether a pass before has left the channel's elements in the processor's cache
  bool grouped;  // whether it is the next channel's turn after some planes
};

// Elements that fused kernels work on at a time.
constexpr int64_t kTile = 1024;

// A part of a tensor's elements that one thread works through: in the planes layout a range of a channel's, or the same
// range, of whole planes then, of several channels next to each other, plane by plane; in the rows layout a range of
// rows, of planes.channels elements each, and in each of them the elements of these channels.
struct Section {
  bool rows;
  Planes planes;
  int64_t channel, begin, end;
  int64_t together;  // channels from the first one, `channel`, on
};

// What stands around batch norm: y = dropout(act(batch_norm(pre_act(x)) + residual)). Pointers are to whole tensors, in
// x's memory order, or null.
template <class T>
struct Epilogue {
  Activation pre_act, act;
  const compute_t<T>* slopes;  // of prelu, an array of repeated(channels); or null
  const T* residual;
  // Bit i: whether the gate of act (see is_open) is open at element i. Written forward, all zero before; backward,
  // where they are given, read in place of computing the argument again.
  uint8_t* gates;
  int64_t gate_bytes;
  const uint64_t* keep;  // bit i: whether element i is kept; one word beyond them may be read; null: all are kept
  compute_t<T> scale;    // of what is kept
  T* dz;                 // where grad_sums_act leaves the gradient of z
  double* slope_sums;    // to which grad_sums_act adds the gradients of slopes, an array of padded(channels); or null
};

// y = dropout(act(x + bias)) + residual.
template <class T>
struct ActDropout {
  const compute_t<T>* bias;  // of the last dimension, of so many channels, over and over up to kTile more; or null
  int64_t channels;
  Activation act;
  const T* residual;  // or null
  bool drops;         // else neither `drop` nor what follows is looked at
  DropoutArguments drop;
  const uint64_t* keep;  // feature draws, as feature_dropout takes them; null: one draw for each element
  FeatureMap features;
};

// How a channel's two sums are taken: in double, or with fewer instructions in the compute type over blocks of some
// hundred elements, the blocks then in double. The latter overflows or cancels where the former would not.
enum class Summation { fast, precise };

// centre, mean: arrays of all channels, padded. sums: two arrays of padded(together), or two numbers in the planes
// layout, where sums are those of one channel.
template <class T>
struct Kernels {
  using C = compute_t<T>;

  // In the ranges of these three `begin` is a multiple of 64, but for the end of the tensor or of the draws so is
  // `end`. Bit i of words: whether draw begin + i is kept. Whole words are written.
  void (*keep_bits)(uint64_t* words, int64_t begin, int64_t end, const DropoutArguments&);
  void (*dropout)(const T* x, T* y, int64_t begin, int64_t end, const DropoutArguments&);
  // keep: the bits of all draws, and one word beyond them that may be read. residual: null where there is none.
  void (*feature_dropout)(const T* x, const T* residual, T* y, int64_t begin, int64_t end, const uint64_t* keep,
                          const FeatureMap&, const DropTransform&);

  // sums = (sum of x - centre, sum of (x - centre)^2)
  void (*moments)(const Section&, const T* x, const double* centre, double* sums, Summation);
  void (*normalize)(const Section&, const T* x, T* y, const ForwardCoefficients<C>&);
  // sums = (sum of dy, sum of dy * (x - mean))
  void (*grad_sums)(const Section&, const T* dy, const T* x, const double* mean, double* sums, Summation);
  void (*grad_input)(const Section&, const T* dy, const T* x, T* dx, const BackwardCoefficients<C>&);

  // The same four with what stands around batch norm. Backward computes z, the argument of act, as forward does, from
  // the same coefficients; dy stands for the gradient of y, of which that of z is made first.
  // sums = (sum of pre_act(x) - centre, sum of its square)
  void (*moments_act)(const Section&, const T* x, const Activation& pre_act, const double* centre, double* sums,
                      Summation);
  void (*normalize_act)(const Section&, const T* x, T* y, const ForwardCoefficients<C>&, const Epilogue<T>&);
  void (*grad_sums_act)(const Section&, const T* dy, const T* x, const ForwardCoefficients<C>&, const double* mean,
                        const Epilogue<T>&, double* sums, Summation);
  // dx and dresidual may be null. Without mean_dy the statistics are constants: dx = dz * scale.
  void (*grad_input_act)(const Section&, const T* dy, const T* x, T* dx, T* dresidual, const ForwardCoefficients<C>&,
                         const BackwardCoefficients<C>&, const Epilogue<T>&);

  // `begin` is a multiple of 64.
  void (*act_dropout)(const T* x, T* y, int64_t begin, int64_t end, const ActDropout<T>&);
  void (*act_dropout_backward)(const T* dy, const T* x, T* dx, int64_t begin, int64_t end, const ActDropout<T>&);
};

// The kernels for the instruction set in use: the best that the machine has, or less if ATEN_CPU_CAPABILITY
// (default, avx2, avx512) says so. Chosen once.
template <class T>
const Kernels<T>& kernels();

// The name of the instruction set in use: "baseline", "avx2" or "avx512".
const char* instruction_set();

}  // namespace fastreg::cpu
