// How long a planned batch norm takes, roughly, before anything has run: no measurement, and not what the choice of
// tier goes by (see plan.h).
//
// A pass starts its launches, moves its bytes through memory and through L2, whichever takes longer, and between
// reading and writing it waits for the trips of its reduction, one after the other. What of these overlaps with other
// groups' work counts once.
#pragma once

#include <optional>
#include <string>

#include "kernels/batch_norm/plan.h"

namespace fastreg {

// Of a device, besides its limits. Times in microseconds.
struct DeviceSpeed {
  double memory_bytes, l2_bytes;  // moved in a microsecond
  double memory_trip, l2_trip;    // from a load to its use
  double launch;                  // to start a kernel, and for its blocks to come and go
};
struct KnownDevice {
  const char* name;
  DeviceLimits limits;
  DeviceSpeed speed;
};
// H200, H100, A100, L4, RTX 4090 or T4.
constexpr int kKnownDevices = 6;
const KnownDevice* known_devices();
std::optional<KnownDevice> known_device(const std::string& name);

// In microseconds, but for the trips' number.
struct TimeEstimate {
  double launches = 0, memory = 0, l2 = 0, reduction = 0;
  double trips = 0;  // to L2 or over a block's barriers, each after the one before it
  double total() const { return launches + (memory > l2 ? memory : l2) + reduction; }
};
// Of a plan that is possible.
TimeEstimate estimated_time(const BatchNormProblem& problem, const BatchNormPlan& plan, const DeviceLimits& limits,
                            const DeviceSpeed& speed);

}  // namespace fastreg
