// The choice of tier for a batch norm: which kernel, how many blocks, how much shared memory. One pure function of
// shape, layout, element size and device limits, for any C++ compiler; no device is asked, none has to be there.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "kernels/common/activation.h"

namespace fastreg {

// How [N, C, ...] lies in memory: [planes, channels, size] ("planes"), or [planes * size, channels] ("rows",
// channels-last).
struct BatchNormShape {
  int64_t planes, channels, size;
  bool rows;

  int64_t per_channel() const { return planes * size; }
  int64_t elements() const { return planes * channels * size; }
};

enum class BatchNormPass { train, train_backward, eval, eval_backward };

// slab      a channel, or some adjacent ones, in the shared memory of one block (planes)
// cluster   the same in the shared memory of a cluster of blocks, from sm_90 on (planes)
// grid      groups of channels in the shared memory of teams of co-resident blocks
// l2        the same with what does not fit there left in L2
// streamed  twice through memory: anything
enum class Tier { slab, cluster, grid, l2, streamed };
constexpr Tier kTiers[] = {Tier::slab, Tier::cluster, Tier::grid, Tier::l2, Tier::streamed};
const char* tier_name(Tier tier);
std::optional<Tier> tier_named(const std::string& name);

// What an epilogue moves in a pass besides.
struct EpilogueTraffic {
  bool residual = false;       // read: forward; backward where act's derivative is computed from it
  bool gate = false;           // a bit per element, written forward, read backward
  bool grad_residual = false;  // written
  bool slopes = false;         // of prelu, learned: read forward and backward, where their gradient is summed
};
// Of a forward pass whose backward pass will come, or of that one, with the gradients of all wanted.
EpilogueTraffic epilogue_traffic(ActivationKind act, bool residual, bool backward);

// Streamed kernels with an epilogue move elements of this size by vectors, where these fit.
constexpr bool moves_vectors(int element_bytes) { return element_bytes <= 4; }

// What the choice depends on.
struct BatchNormProblem {
  BatchNormShape shape;
  int element_bytes;
  bool aligned;  // all tensors start at multiples of 16 bytes
  BatchNormPass pass;
  bool fused = false;  // with an epilogue
  EpilogueTraffic epilogue = {};
};

constexpr int kClusterSizes = 5;  // of 1, 2, 4, 8 and 16 blocks

struct DeviceLimits {
  int compute_capability = 75;  // such as 90
  int multiprocessors = 1;
  int threads_per_block = 512;  // that the kernels may use
  int threads_per_multiprocessor = 1024;
  int64_t shared_per_block = 48 * 1024;  // with opt-in
  int64_t shared_per_multiprocessor = 64 * 1024;
  int64_t l2_bytes = 4 << 20;
  int clusters[kClusterSizes] =
      {};                   // [i]: clusters of 2^i blocks resident together, one block a multiprocessor; 0: none
  bool co_resident = true;  // launches whose blocks wait for each other are allowed
};

// Of a typical device of an architecture: 75, 80, 86, 90, 100 or 120; nullopt for any other. From the vendor's tables,
// except `clusters`, which depends on how multiprocessors are grouped: a present device is asked.
std::optional<DeviceLimits> typical_limits(int compute_capability);

struct BatchNormPlan {
  Tier tier = Tier::streamed;
  std::string refusal;  // why the tier cannot do it; empty: it can
  int64_t blocks = 0;   // 0 in the rest: the tier's launch function divides the work
  int threads = 0;      // per block
  int cluster = 1;      // blocks
  int64_t channels_per_block = 0;
  int buffers = 1;           // 2: one item is loaded while the one before it is processed
  int64_t shared_bytes = 0;  // per block
  int accesses = 0;          // of memory per element, read and written
  int gate_accesses = 0;     // of its gate, a bit
  // Whether the gates of a byte are those of threads that do not know of each other, in different blocks maybe. Then
  // the forward pass sets bits, which are cleared in a launch of its own before. Else neighbouring threads move eight
  // neighbouring elements, in whole vectors, and the byte is written.
  bool shares_gates = false;
  int launches = 1;
  // grid and l2
  int columns = 1;           // vectors side by side in a group of channels
  int splits = 1;            // blocks of a team
  int64_t split_length = 0;  // of a channel's vectors (planes) or rows
  int kept = 0;              // vectors of each tensor that a thread keeps in shared memory
  double reread = 0;         // share of the elements read a second time, from L2
  double cost = 0;           // relative time: bytes per multiprocessor

  bool possible() const { return refusal.empty(); }
  double bytes_per_element(int element_bytes) const { return accesses * element_bytes + gate_accesses / 8.0; }
};

// Adds what the problem's epilogue moves. readings: how often backward reads dy, and with it what tells act's
// derivative. run: elements next to each other that are moved by threads next to each other.
void add_epilogue(const BatchNormProblem& problem, int readings, int64_t run, BatchNormPlan& plan);

// The cheapest plan; of the tier alone where one is given, which may then refuse. Streamed never does.
BatchNormPlan plan_batch_norm(const BatchNormProblem& problem, const DeviceLimits& limits,
                              std::optional<Tier> tier = std::nullopt);

}  // namespace fastreg
