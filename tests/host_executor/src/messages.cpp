// What the machine says: errors with kernel, block, thread and schedule; who waits for what when nothing moves.
#include <cinttypes>
#include <cstdio>

#include "machine.h"

namespace host_executor {
namespace {
constexpr size_t kMaxErrors = 20;
}

void Machine::fail(const Grid& grid, const std::string& text) {
  const std::string message =
      "kernel " + grid.name + ", " + text + " [FASTREG_EXECUTOR_SCHEDULE=" + to_string(options_.schedule) + "]";
  if (result_.errors.size() < kMaxErrors) result_.errors.push_back(message);
}

void Machine::fail(const std::string& text) {
  // Once per kernel: what goes wrong in one thread goes wrong in many.
  const std::string key = current_ ? current_->block->grid->name + text : text;
  if (!reported_.insert(key).second) return;
  if (current_) {
    fail(*current_->block->grid,
         describe("block", current_->block->index) + ", " + describe("thread", current_->index) + ": " + text);
  } else if (result_.errors.size() < kMaxErrors) {
    result_.errors.push_back(text);
  }
}

std::string Machine::where() const {
  if (!current_) return "";
  return "kernel " + current_->block->grid->name + ", " + describe("block", current_->block->index) + ", " +
         describe("thread", current_->index) + " [FASTREG_EXECUTOR_SCHEDULE=" + to_string(options_.schedule) + "]";
}

std::string describe(const char* what, const uint3& index) {
  return std::string(what) + " (" + std::to_string(index.x) + "," + std::to_string(index.y) + "," +
         std::to_string(index.z) + ")";
}

std::string describe(const Wait& wait) {
  char text[160];
  switch (wait.kind) {
    case Wait::none:
      return "spins";
    case Wait::block_barrier:
      std::snprintf(text, sizeof text, "waits at __syncthreads, where %" PRIu64 " of %" PRIu64 " threads have arrived",
                    wait.a, wait.b);
      break;
    case Wait::warp_function:
      std::snprintf(text, sizeof text,
                    "waits at a warp function of mask 0x%08" PRIx64 ", at which lanes 0x%08" PRIx64 " have arrived",
                    wait.a, wait.b);
      break;
    case Wait::cluster_barrier:
      return "waits at cluster_wait";
    case Wait::transaction:
      std::snprintf(text, sizeof text,
                    "waits for a transaction barrier that still expects %" PRIu64 " arrivals and %" PRId64 " bytes",
                    wait.a, int64_t(wait.b));
      break;
    case Wait::counter:
      std::snprintf(text, sizeof text, "waits for a counter to reach %" PRIu64 "; it saw %" PRIu64, wait.b, wait.a);
      break;
    case Wait::previous_kernel:
      return "waits for the previous kernel";
  }
  return text;
}

void Machine::report_stuck() {
  stuck_ = true;
  for (const Step& step : stream_) {
    if (!step.grid) continue;
    for (const auto& cluster : step.grid->clusters) {
      for (const Block& block : cluster->blocks) {
        std::map<std::string, std::pair<const Thread*, int>> waits;  // a thread, and how many wait likewise
        for (const Thread& thread : block.threads) {
          if (thread.done) continue;
          auto& entry = waits.try_emplace(describe(thread.wait), &thread, 0).first->second;
          entry.second += 1;
        }
        for (const auto& [wait, who] : waits) {
          std::string text = describe("block", block.index) + ", " + describe("thread", who.first->index);
          if (who.second > 1) text += " and " + std::to_string(who.second - 1) + " more";
          fail(*step.grid, text + ": " + wait + ", for ever");
        }
      }
    }
  }
}

}  // namespace host_executor
