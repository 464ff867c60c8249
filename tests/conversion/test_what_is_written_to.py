"""Converted forwards that write to tensors which others see, or that are given such, compute what plain ones do.

other names of what is written to, buffers          test_aliases, test_buffer_scaled_in_place
one batch norm for two branches                     test_one_batch_norm_for_two_branches
writes between two layers                           test_write_between_layers
sums in place, skips that are written to            test_sums_in_place, test_residual_written_after
inference mode                                      test_residual_made_in_inference_mode
a sum in place after dropout that does nothing      test_sum_in_place_after_dropout_in_evaluation
PReLU under autocast                                test_prelu_under_autocast
"""

import pytest
import torch
from torch import nn

from tests.conversion.forwards import TOLERANCE, assert_same, both, images, seen
from tests.conversion.test_convert import same_masks  # noqa: F401


def aliases():
    def second_name(self, x):
        h = self.bn(x)
        skip = h
        h += x
        return self.relu(h) + skip

    def second_name_of_a_new_tensor(self, x):
        h = self.conv(x)
        skip = h
        h += self.bn(x)
        return self.relu(h) * skip

    def view(self, x):
        h = self.bn(x)
        part = h[:, :2]
        part *= 2
        return self.relu(h)

    def input_of_norm(self, x):
        h = self.conv(x)
        y = self.bn(h)
        h = h.detach()
        return self.relu(y) + h

    def kept(self, x):
        h = self.bn(x)
        self.features = [h]
        return self.relu(h)

    return second_name, second_name_of_a_new_tensor, view, input_of_norm, kept


@pytest.mark.parametrize("forward", aliases(), ids=lambda f: f.__name__)
def test_aliases(forward):
    plain, ours = both(forward)
    assert_same(ours, plain)


def test_buffer_scaled_in_place():
    def forward(self, x):
        scale = self.scale
        scale *= 0.9
        return self.relu(self.bn(x)) * scale.clone()

    plain, ours = both(forward)
    assert_same(ours, plain)
    assert ours.scale.max() < 0.9


def test_one_batch_norm_for_two_branches():
    def forward(self, x):
        one, other = self.bn(x), self.bn(2 * x + 1)
        return self.relu(one) + self.silu(other)

    plain, ours = both(forward)
    assert_same(ours, plain)
    assert ours.bn.num_batches_tracked == plain.bn.num_batches_tracked == 4


def test_write_between_layers():
    def forward(self, x):
        h = self.bn(x)
        h.mul_(2)
        return self.relu(h)

    plain, ours = both(forward)
    assert_same(ours, plain)


def sums():
    def block(self, x):  # torch's error in training: batch norm keeps x
        x = self.conv(x)
        x += self.bn(x)
        return self.relu(x)

    def skip_of_input(self, x):
        x = x * 1
        x += self.drop(self.relu(x))
        return x

    return block, skip_of_input


@pytest.mark.parametrize("forward", sums(), ids=lambda f: f.__name__)
def test_sums_in_place(forward, same_masks):  # noqa: F811
    plain, ours = both(forward)
    assert_same(ours, plain)


def test_residual_written_after():
    """The skip is not what silu's derivative is computed of: torch keeps the sum, and so must a fused site."""

    def forward(self, x):
        skip = self.conv(x)
        h = self.silu(self.bn(x) + skip)
        skip.mul_(0.5)
        return h + skip

    plain, ours = both(forward)
    assert_same(ours, plain)


def test_residual_made_in_inference_mode():
    def forward(self, x):
        return self.relu(self.bn(x) + self.skip)

    plain, ours = both(forward)
    with torch.inference_mode():
        skip = images() * 2
    plain.skip = ours.skip = skip
    assert skip.is_inference()
    for training in (True, False):
        ours.train(training), plain.train(training)
        outcomes = []
        for model in (ours, plain):
            x = images().requires_grad_()
            y = model(x)
            y.sum().backward()
            outcomes.append((y, x.grad, model.state_dict()))
        torch.testing.assert_close(*outcomes, **TOLERANCE)


def test_sum_in_place_after_dropout_in_evaluation(same_masks):  # noqa: F811
    """Dropout that does nothing gives its input, which relu keeps for its gradient: a sum in place is torch's error."""

    def forward(self, x):
        h = self.relu(x)
        y = self.drop(h)
        y += x
        return y

    plain, ours = both(forward)
    assert_same(ours, plain)
    for model in (plain.eval(), ours.eval()):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            seen(model, images())


@pytest.mark.parametrize("of_convolution", [True, False])
def test_prelu_under_autocast(of_convolution):
    def forward(self, x):
        return self.relu(self.bn(self.conv(x) if of_convolution else x))

    plain, ours = both(forward)
    for model in (plain, ours):
        model.float()
        model.relu = nn.PReLU(8, init=0.3)
    outcomes = []
    for model in (ours, plain):
        with torch.autocast("cpu", torch.bfloat16):
            y = model(images(torch.float32))
        y.float().square().mean().backward()
        outcomes.append((y, model.relu.weight.grad))
    assert outcomes[0][0].dtype == outcomes[1][0].dtype == torch.bfloat16
    # One unit in the last of bfloat16's 8 bits, of values up to 4, and of slopes where values are 0 but for that.
    torch.testing.assert_close(*outcomes, rtol=2**-7, atol=2**-6)
