#include "host_executor/warp.h"

#include <algorithm>
#include <cstdio>

#include "machine.h"
#include "sanitizer.h"

namespace host_executor {
namespace {

std::string hex(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

// Waits for the lanes of the mask; what each of them brought, valid until this thread's next call. Null where the mask
// makes waiting pointless.
Rendezvous* meet(WarpFunction function, unsigned mask, uint64_t value) {
  Thread& self = machine.current();
  Warp& warp = *self.warp;
  const unsigned self_bit = 1u << self.lane;
  if (!(mask & self_bit)) {
    machine.fail("warp function of mask " + hex(mask) + " called by lane " + std::to_string(self.lane) +
                 ", which is not in it");
    return nullptr;
  }
  if (mask & ~warp.alive) {
    machine.fail("warp function of mask " + hex(mask) + ", but only lanes " + hex(warp.alive) + " exist and run");
    return nullptr;
  }
  Rendezvous& meeting = warp.rendezvous[mask];
  if (meeting.arrived == 0) {
    meeting.function = function;
  } else if (meeting.function != function) {
    machine.fail("lanes of one mask " + hex(mask) + " are at different warp functions");
  }
  meeting.in[self.lane] = value;
  meeting.arrived |= self_bit;
  if (meeting.arrived == mask) {
    std::copy(std::begin(meeting.in), std::end(meeting.in), meeting.out);
    meeting.arrived = 0;
    ++meeting.generation;
    for (Thread* other : warp.lanes) {
      if (other && other != &self && (mask >> other->lane & 1)) machine.wake(*other);
    }
    machine.reschedule();
  } else {
    machine.park({Wait::warp_function, mask, meeting.arrived});
  }
  return &meeting;
}

}  // namespace

int lane() { return machine.current().lane; }

void warp_barrier(unsigned mask) {
  char* key = nullptr;
  {
    Quiet quiet;
    Rendezvous& meeting = machine.current().warp->rendezvous[mask];
    key = &meeting.keys[meeting.generation & 1];
  }
  release(key);
  {
    Quiet quiet;
    meet(WarpFunction::sync, mask, 0);
  }
  acquire(key);
}

uint64_t warp_shuffle(WarpFunction function, unsigned mask, uint64_t value, int source) {
  Quiet quiet;
  if (!(mask >> source & 1)) {
    machine.fail("shuffle of mask " + hex(mask) + " reads from lane " + std::to_string(source) +
                 ", which is not in it");
  }
  const Rendezvous* meeting = meet(function, mask, value);
  return meeting ? meeting->out[source] : value;
}

unsigned warp_vote(unsigned mask, bool predicate) {
  Quiet quiet;
  const Rendezvous* meeting = meet(WarpFunction::vote, mask, predicate);
  unsigned votes = 0;
  for (int i = 0; meeting && i < 32; ++i) {
    if ((mask >> i & 1) && meeting->out[i]) votes |= 1u << i;
  }
  return votes;
}

unsigned warp_reduce(WarpFunction function, unsigned mask, unsigned value) {
  Quiet quiet;
  const Rendezvous* meeting = meet(function, mask, value);
  if (!meeting) return value;
  bool first = true;
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    const unsigned next = unsigned(meeting->out[i]);
    if (first) {
      result = next;
    } else if (function == WarpFunction::reduce_add) {
      result += next;
    } else if (function == WarpFunction::reduce_min) {
      result = std::min(result, next);
    } else if (function == WarpFunction::reduce_max) {
      result = std::max(result, next);
    } else {
      result |= next;
    }
    first = false;
  }
  return result;
}

}  // namespace host_executor
