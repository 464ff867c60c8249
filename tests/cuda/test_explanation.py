"""fastreg.explain: what it tells of the plan, and for which layout."""

import pytest
import torch

import fastreg
from fastreg.explanation import DEVICES

pytestmark = pytest.mark.skipif(
    fastreg._extension.problem() is not None, reason=f"no extension: {fastreg._extension.problem()}"
)


def half(*shape):
    return torch.empty(shape, dtype=torch.float16)


def test_on_chip():
    plan = fastreg.explain(half(32, 2048, 7, 7), device_limits=90)
    assert plan["tier"] == "slab" and plan["launches"] == 1 and plan["bytes_per_element"] == 4
    assert plan["channels_per_block"] == 8 and plan["shared_bytes"] > 32 * 8 * 49 * 2
    assert fastreg.explain(half(32, 2048, 7, 7), backward=True, device_limits=90)["bytes_per_element"] == 6


def test_clusters_from_sm_90_on():
    x = half(64, 256, 56, 56)
    assert fastreg.explain(x, device_limits=90)["tier"] == "cluster"
    assert fastreg.explain(x, device_limits=90)["cluster"] > 1
    assert fastreg.explain(x, device_limits=80)["tier"] != "cluster"


def test_streamed():
    plan = fastreg.explain(torch.empty(8, 16, 8, 8, dtype=torch.float64), device_limits=90)
    assert plan == {"compute_capability": 90, "tier": "streamed", "launches": 2, "bytes_per_element": 24}


def test_evaluation():
    assert fastreg.explain(half(8, 16, 8, 8), training=False, device_limits=90)["bytes_per_element"] == 4
    assert fastreg.explain(half(8, 16, 8, 8), training=False, device_limits=90)["launches"] == 1


@pytest.mark.parametrize("shape", [(8, 16), (8, 16, 5), (8, 16, 4, 4), (8, 16, 2, 4, 4)])
def test_layouts(shape):
    x = half(*shape)
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    refusal = "the channels lie next to each other"
    # Results, and the copy they are computed from, are contiguous where the rank has no channels-last format.
    assert (fastreg.explain(last, device_limits=90, tier="slab").get("refusal") == refusal) is (len(shape) != 3)
    assert (fastreg.explain(x, device_limits=90, tier="slab").get("refusal") == refusal) is (len(shape) == 2)
    # What the operators copy is planned as its copy.
    sliced = half(*shape, 2)[..., 0]
    assert fastreg.explain(sliced, device_limits=90) == fastreg.explain(x, device_limits=90)


def test_alignment():
    x = half(8 * 16 * 64 + 1)[1:].view(8, 16, 8, 8)
    assert "aligned" in fastreg.explain(x, device_limits=90, tier="slab")["refusal"]


def test_meta():
    assert fastreg.explain(half(8, 16, 8, 8).to("meta"), device_limits=75)["tier"] == "slab"


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "at least 2 dimensions and one element, got \\[3\\]", {"input": half(3)}),
        (ValueError, "one element, got \\[0, 3\\]", {"input": half(0, 3)}),
        (TypeError, "got torch.int32", {"input": torch.empty(2, 3, dtype=torch.int32)}),
        (ValueError, "75, 80, 86, 90, 100, 120, H200, .*, T4, got 70", {"device_limits": 70}),
        (ValueError, "the name of a tier, got 'fastest'", {"tier": "fastest"}),
        (ValueError, "the name of an activation, got 'swoosh'", {"act": "swoosh"}),
    ],
)
def test_refused(error, message, arguments):
    with pytest.raises(error, match=f"^explain: .*{message}"):
        fastreg.explain(**{"input": half(2, 3), "device_limits": 90, **arguments})


@pytest.mark.parametrize(
    ("shape", "dtype", "act", "residual", "forward", "backward"),
    [
        # On chip: x and the residual read, y and a bit written; x, dy and the bit read, both gradients written.
        ((32, 2048, 7, 7), torch.float16, "relu", True, 6.125, 8.125),
        ((32, 2048, 7, 7), torch.float32, "relu", True, 12.125, 16.125),
        ((32, 2048, 7, 7), torch.float32, "silu", True, 12, 20),
        ((32, 2048, 7, 7), torch.float32, "identity", True, 12, 16),
        ((32, 2048, 7, 7), torch.float32, "relu", False, 8, 12),
        # Streamed: what tells relu's side is read in both passes backward.
        ((8, 16, 3, 3), torch.float64, "silu", True, 32, 64),
        # Bits of a byte that several blocks set are cleared first.
        ((8, 16, 3, 3), torch.float64, "relu", True, 32.25, 48.25),
    ],
)
def test_fused(shape, dtype, act, residual, forward, backward):
    x = torch.empty(shape, dtype=dtype)
    told = [
        fastreg.explain(x, act=act, residual=residual, backward=backward, device_limits=90)
        for backward in (False, True)
    ]
    assert [plan["bytes_per_element"] for plan in told] == [forward, backward]
    plain = fastreg.explain(x, device_limits=90)
    assert told[0]["launches"] == plain["launches"] + (forward % 1 == 0.25)
    assert fastreg.explain(x, act="identity", device_limits=90)["bytes_per_element"] == plain["bytes_per_element"]


def test_fused_channels_last_stays_on_chip():
    x = half(64, 256, 28, 28).to(memory_format=torch.channels_last)
    for residual, forward, backward in ((False, 4, 6), (True, 6.125, 8.125)):
        arguments = {"act": "relu", "residual": residual, "device_limits": 90}
        for plan in (fastreg.explain(x, **arguments), fastreg.explain(x, tier="grid", **arguments)):
            assert (plan["tier"], plan["launches"], plan["bytes_per_element"]) == ("grid", 1, forward)
        plan = fastreg.explain(x, backward=True, **arguments)
        assert (plan["tier"], plan["launches"], plan["bytes_per_element"]) == ("grid", 1, backward)


class TestEstimate:
    def estimate(self, x, device="H200", **arguments):
        return fastreg.explain(x, device_limits=device, **arguments)["estimate"]

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("backward", [False, True])
    def test_large_tensors_take_the_time_of_their_bytes(self, device, backward):
        """256x256x56x56 in 16 bits, at 0.9 of the data sheet's bandwidth."""
        gigabytes = {"H200": 4800, "H100": 3350, "A100": 2039, "L4": 300, "RTX 4090": 1008, "T4": 320}[device]
        x = half(256, 256, 56, 56).to("meta")
        plan = fastreg.explain(x, device_limits=device, backward=backward)
        moved = x.numel() * plan["bytes_per_element"] / (0.9e3 * gigabytes)
        # At most a tenth of it for launches and reductions, and a quarter where loads and stores take turns.
        assert moved <= plan["estimate"]["microseconds"] < 1.35 * moved

    def test_parts(self):
        parts = self.estimate(half(32, 64, 56, 56))
        longest = max(parts["memory"], parts["l2"])
        assert parts["microseconds"] == pytest.approx(parts["launches"] + longest + parts["reduction"])
        assert min(parts["launches"], parts["memory"], parts["l2"], parts["reduction"]) > 0

    def test_tiers(self):
        parts = self.estimate(half(32, 64, 56, 56))
        assert list(parts["tiers"]) == ["slab", "cluster", "grid", "streamed"]
        assert parts["tiers"]["cluster"] == parts["microseconds"]
        assert parts["tiers"]["streamed"] == self.estimate(half(32, 64, 56, 56), tier="streamed")["microseconds"]
        assert "cluster" not in self.estimate(half(32, 64, 56, 56), "A100")["tiers"]

    def test_small_tensors_take_their_launches(self):
        parts = self.estimate(torch.empty(1024, 256), tier="streamed")
        assert parts["launches"] > 2 * parts["memory"]

    def test_what_l2_keeps_is_read_from_memory_once(self):
        """A third of what training streams, where x fits into L2 beside what else is there."""
        small, large = (self.estimate(half(n, 64, 56, 56), tier="streamed") for n in (32, 320))
        assert large["memory"] == pytest.approx(15 * small["memory"])
        assert large["l2"] == pytest.approx(10 * small["l2"])

    def test_a_team_waits_once_for_each_group_unless_two_are_in_flight(self):
        x = half(32, 64, 56, 56).contiguous(memory_format=torch.channels_last)
        one = fastreg.explain(x, device_limits="H200", tier="grid")
        assert one["splits"] > 100 and one["estimate"]["reduction"] > 1
        # Fewer partial results, a shorter sum of them.
        fewer = fastreg.explain(
            half(4, 64, 28, 28).contiguous(memory_format=torch.channels_last), device_limits="H200", tier="grid"
        )
        assert fewer["splits"] < one["splits"]
        assert fewer["estimate"]["reduction"] < one["estimate"]["reduction"]

    def test_none_without_a_name(self):
        assert "estimate" not in fastreg.explain(half(32, 64, 56, 56), device_limits=90)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="explain: device_limits must be 75, .*, H200, .*, T4, got 'H300'"):
            fastreg.explain(half(8, 16), device_limits="H300")
