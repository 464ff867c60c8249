// Asynchronous copies. Each is performed either when it is issued or, as late as the program allows, when somebody
// waits for it: a kernel must be right both ways.
//
// For race detection a copy is a thread of its own: after its issue, before whoever waited for it, and unordered with
// everything else.
#include <algorithm>
#include <cstring>

#include "host_executor/cooperation.h"
#include "machine.h"
#include "memory.h"
#include "sanitizer.h"

namespace host_executor {
namespace {

#if defined(FASTREG_EXECUTOR_TSAN)
// Several, because the copies of one engine are ordered among each other.
void observe_copy(const Copy& copy, char* performed) {
  static void* engines[8] = {};
  static unsigned turn = 0;
  void*& engine = engines[turn++ % 8];
  if (!engine) engine = __tsan_create_fiber(0);
  void* self = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(engine, 1);
  acquire(copy.issued);
  observe_read(copy.from, copy.bytes);
  observe_write(copy.to, copy.bytes);
  release(performed);
  __tsan_switch_to_fiber(self, 1);
}
#else
void observe_copy(const Copy&, char*) {}
#endif

void perform(Copy& copy, char* performed) {
  observe_copy(copy, performed);
  Quiet quiet;
  std::memcpy(copy.to, copy.from, copy.bytes);
  copy.performed = true;
}

void perform_late_copies(CopyGroups& groups, unsigned before_group) {
  for (Copy& copy : groups.copies) {
    if (!copy.performed && copy.group < before_group) perform(copy, &groups.performed[copy.group % 8]);
  }
}

void issue(CopyGroups& groups, void* to, const void* from, size_t bytes) {
  const unsigned group = groups.open_group;
  char* issued = &groups.issued[group % 8];
  release(issued);
  groups.copies.push_back({to, from, bytes, nullptr, group, issued, false});
  if (!machine.copies_late()) perform(groups.copies.back(), &groups.performed[group % 8]);
}

void commit(CopyGroups& groups) { ++groups.open_group; }

void wait(CopyGroups& groups, int pending) {
  if (groups.open_group < unsigned(pending)) return;
  const unsigned before_group = groups.open_group - unsigned(pending);
  perform_late_copies(groups, before_group);
  for (unsigned group = before_group > 8 ? before_group - 8 : 0; group < before_group; ++group) {
    acquire(&groups.performed[group % 8]);
  }
  Quiet quiet;
  auto& copies = groups.copies;
  copies.erase(
      std::remove_if(copies.begin(), copies.end(), [&](const Copy& copy) { return copy.group < before_group; }),
      copies.end());
}

Transaction* find(void* barrier, const char* who) {
  auto& transactions = machine.current().block->transactions;
  const auto found = transactions.find(barrier);
  if (found == transactions.end()) {
    machine.fail(std::string(who) + " on a transaction barrier that was not initialised");
    return nullptr;
  }
  return &found->second;
}

void complete_phase(Transaction& transaction) {
  if (transaction.pending || transaction.bytes) return;
  transaction.pending = transaction.arrivals;
  ++transaction.phase;
  machine.wake_all(transaction.waiting);
}

void perform_load(Transaction& transaction, Copy& copy) {
  perform(copy, &transaction.keys[transaction.phase & 1]);
  transaction.bytes -= int64_t(copy.bytes);
  complete_phase(transaction);
}

bool bulk_allowed(const void* a, const void* b, size_t bytes) {
  if ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | bytes) % 16 == 0) return true;
  machine.fail("a bulk copy whose addresses and size are not all multiples of 16 bytes");
  return false;
}

}  // namespace

void copy_async(void* shared, const void* global, size_t bytes) {
  if (!check_access(Access::load, global, bytes) || !check_shared_access(shared, bytes)) return;
  issue(machine.current().copies, shared, global, bytes);
}
void copy_async_commit() { commit(machine.current().copies); }
void copy_async_wait(int pending) { wait(machine.current().copies, pending); }

void bulk_store(void* global, const void* shared, size_t bytes) {
  if (!bulk_allowed(global, shared, bytes) || !check_shared_access(shared, bytes)) return;
  if (!check_bulk_access(Access::store, global, bytes)) return;
  issue(machine.current().bulk_stores, global, shared, bytes);
}
void bulk_commit() { commit(machine.current().bulk_stores); }
void bulk_wait(int pending) { wait(machine.current().bulk_stores, pending); }
void bulk_fence() {}

void transaction_init(void* barrier, unsigned arrivals) {
  if (!check_shared_access(barrier, 8)) return;
  observe_write(barrier, 8);
  Quiet quiet;
  Transaction& transaction = machine.current().block->transactions[barrier];
  transaction.arrivals = transaction.pending = arrivals;
}

void transaction_arrive(void* barrier, unsigned expected_bytes) {
  observe_read(barrier, 8);
  Transaction* transaction = find(barrier, "arrival");
  if (!transaction) return;
  release(&transaction->keys[transaction->phase & 1]);
  Quiet quiet;
  transaction->bytes += expected_bytes;
  if (transaction->pending == 0) {
    machine.fail("more arrivals at a transaction barrier than it was initialised for");
    return;
  }
  transaction->pending -= 1;
  complete_phase(*transaction);
}

void transaction_wait(void* barrier, unsigned parity) {
  observe_read(barrier, 8);
  Transaction* transaction = find(barrier, "wait");
  if (!transaction) return;
  const uint64_t phase = transaction->phase;
  // The wait of a phase is over once the current phase has the other parity.
  if ((phase & 1) == (parity & 1)) {
    Quiet quiet;
    auto& late = machine.current().block->late_loads;
    for (auto copy = late.begin(); copy != late.end();) {
      if (copy->transaction == barrier) {
        perform_load(*transaction, *copy);
        copy = late.erase(copy);
      } else {
        ++copy;
      }
    }
    while (transaction->phase == phase) {
      transaction->waiting.push_back(&machine.current());
      machine.park({Wait::transaction, transaction->pending, uint64_t(transaction->bytes)});
    }
  }
  acquire(&transaction->keys[parity & 1]);
}

void bulk_load(void* shared, const void* global, size_t bytes, void* barrier) {
  observe_read(barrier, 8);
  Transaction* transaction = find(barrier, "bulk load");
  if (!transaction || !bulk_allowed(shared, global, bytes) || !check_shared_access(shared, bytes)) return;
  if (!check_bulk_access(Access::load, global, bytes)) return;
  release(&transaction->issued);
  Copy copy{shared, global, bytes, barrier, 0, &transaction->issued, false};
  // Where threads wait already, nobody would be left to perform a late copy.
  if (machine.copies_late() && transaction->waiting.empty()) {
    Quiet quiet;
    machine.current().block->late_loads.push_back(copy);
  } else {
    perform_load(*transaction, copy);
  }
}

void check_copies_complete(Thread& thread) {
  if (!thread.copies.copies.empty()) machine.fail("exits without having waited for its asynchronous copies");
  if (!thread.bulk_stores.copies.empty()) machine.fail("exits without having waited for its bulk stores");
}

}  // namespace host_executor
