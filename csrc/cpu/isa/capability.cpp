// Which instruction set the CPU kernels use.
#include <cstdlib>
#include <cstring>

#include "cpu/isa/kernels.h"

namespace fastreg::cpu {

// Defined by csrc/cpu/isa/*.cpp.
namespace baseline {
template <class T>
const Kernels<T>& table();
}
namespace avx2 {
template <class T>
const Kernels<T>& table();
}
namespace avx512 {
template <class T>
const Kernels<T>& table();
}

namespace {

enum class Capability { baseline, avx2, avx512 };

Capability best_of_machine() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Capability::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Capability::avx2;
#endif
  return Capability::baseline;
}

// ATEN_CPU_CAPABILITY, torch's own switch, can ask for less than the machine has, never for more.
Capability choose() {
  const Capability best = best_of_machine();
  const char* wanted = std::getenv("ATEN_CPU_CAPABILITY");
  if (wanted == nullptr) return best;
  if (std::strcmp(wanted, "default") == 0) return Capability::baseline;
  if (std::strcmp(wanted, "avx2") == 0 && best == Capability::avx512) return Capability::avx2;
  return best;
}

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

}  // namespace

template <class T>
const Kernels<T>& kernels() {
#if defined(__x86_64__)
  if (capability() == Capability::avx512) return avx512::table<T>();
  if (capability() == Capability::avx2) return avx2::table<T>();
#endif
  return baseline::table<T>();
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();
template const Kernels<half>& kernels<half>();
template const Kernels<bfloat16>& kernels<bfloat16>();

const char* instruction_set() {
  switch (capability()) {
    case Capability::avx512:
      return "avx512";
    case Capability::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace fastreg::cpu
