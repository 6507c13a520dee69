"""Interpolation: a share of the change, the ends exact, grown parameters by their old block."""

import torch
from torch import nn

from lifelong.numerics.interpolation import interpolate


def test_share_and_ends():
    before = {"a": torch.randn(4, 3), "b": torch.randn(2), "c": torch.randn(5)}
    after = {name: nn.Parameter(old + torch.randn(old.shape)) for name, old in before.items()}
    wanted = {name: p.detach().clone() for name, p in after.items()}
    ratios = {"a": 0.25, "b": 0.0, "c": 1.0}
    interpolate(after, before, ratios.get)
    torch.testing.assert_close(after["a"].detach(), before["a"] + 0.25 * (wanted["a"] - before["a"]))
    assert torch.equal(after["b"], before["b"]) and torch.equal(after["c"], wanted["c"])


def test_what_did_not_move_keeps_every_bit_and_new_rows_stay():
    old = torch.randn(3, 4)
    still, grown = nn.Parameter(old.clone()), nn.Parameter(torch.cat([old + 1, torch.ones(2, 4)]))
    interpolate({"still": still, "grown": grown}, {"still": old, "grown": old}, lambda name: 0.3)
    assert torch.equal(still, old)
    torch.testing.assert_close(grown[:3].detach(), old + 0.3)
    assert torch.equal(grown[3:], torch.ones(2, 4))
