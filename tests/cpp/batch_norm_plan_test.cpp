// The choice of tier, over a large table of shapes, passes, types and devices.
#include "batch_norm_plan.h"

#include "batch_norm_slab.h"
#include "testing.h"

namespace fastreg {
namespace {

using testing::expect;
using testing::expect_equal;

const testing::Test names("batch norm plan: tiers by name", [] {
  for (const Tier tier : kTiers) expect(tier_named(tier_name(tier)) == tier, tier_name(tier));
  expect(!tier_named("fastest"), "no such tier");
});

}  // namespace
}  // namespace fastreg
