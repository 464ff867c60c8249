// What csrc/kernels/common/device.h includes where the compiler is not nvcc: the part of the CUDA language and runtime
// that the kernels use, carried out on the CPU. Nothing here needs the CUDA toolkit.
#pragma once

#include "host_executor/atomics.h"
#include "host_executor/cooperation.h"
#include "host_executor/intrinsics.h"
#include "host_executor/language.h"
#include "host_executor/memory_access.h"
#include "host_executor/runtime.h"
#include "host_executor/warp.h"
