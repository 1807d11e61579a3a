"Parameters and multiply-adds against the numbers of FAKD's networks."

import pytest
import torch
from torch import nn

from fakd.measure.cost import count_macs, count_params, describe_net, latencies, latency
from fakd.memory import peak_memory
from fakd.nets.rcan import RCAN

# scale, parameters, multiply-adds in 10^9 at LR 48x48, the same at as many LR pixels as 1280x720 HR has
RCAN_COSTS = {
    "teacher": [
        (2, 15_444_667, 35.268, 3526.8),
        (3, 15_629_307, 35.713, 1587.2),
        (4, 15_592_379, 36.675, 916.9),
        (8, 15_740_091, 42.303, 264.4),
    ],
    "student": [
        (2, 5_023_627, 11.486, 1148.6),
        (3, 5_208_267, 11.931, 530.3),
        (4, 5_171_339, 12.893, 322.3),
        (8, 5_319_051, 18.521, 115.8),
    ],
}
CASES = [(role, *row) for role, rows in RCAN_COSTS.items() for row in rows]
HW = {2: (360, 640), 3: (320, 320), 4: (180, 320), 8: (90, 160)}  # 1280 * 720 / scale^2 pixels


@pytest.mark.parametrize(("role", "scale", "params", "patch_macs", "frame_macs"), CASES)
def test_rcan_costs_are_those_of_fakd(role, scale, params, patch_macs, frame_macs):
    net = RCAN(scale, **RCAN.SIZES[role])
    assert count_params(net) == params
    assert count_params(net, trainable=True) == params - 24
    assert round(count_macs(net, (48, 48)) / 1e9, 3) == patch_macs
    assert round(count_macs(net, HW[scale]) / 1e9, 1) == frame_macs


class Padded(nn.Module):
    "Pads to multiples of 16, as window transformers do: its cost is no line in the number of pixels."

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, imgs):
        h, w = imgs.shape[2:]
        return self.conv(nn.functional.pad(imgs, (0, -w % 16, 0, -h % 16)))


def test_a_network_whose_cost_is_no_line_is_counted_at_full_size():
    assert count_macs(Padded(), (20, 20)) == 32 * 32 * 2 * 27


def test_linear_layers_count_once_for_each_row():
    net = nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(10), nn.Linear(10, 4))
    assert count_macs(net, (48, 48)) == 3 * 4 * 10


def test_counting_leaves_no_hooks_and_changes_nothing():
    net = RCAN(2, **RCAN.SIZES["mini_student"]).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    describe_net(net)
    assert net.training
    assert not any(layer._forward_hooks for layer in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_peak_memory_counts_what_lives_at_the_same_time():
    def work():
        kept = torch.zeros(1000)          # 4 kB for the whole time
        for _ in range(3):
            (kept + 1).mul_(2)            # 4 kB more, freed each time
        return torch.zeros(500)           # 2 kB beside the 4

    assert peak_memory(work) == 8000
    assert peak_memory(lambda: None) == 0


def test_peak_memory_and_latency_leave_a_network_as_it_was():
    net = RCAN(2, n_resgroups=1, n_resblocks=1, n_feats=8, reduction=4).train()
    net.tail.eval()
    took = latency(net, (8, 8), repeats=3)
    assert took.repeats == 3 and 0 < took.low_ms <= took.median_ms <= took.high_ms
    assert net.training and not net.tail.training
    with torch.inference_mode():
        small, large = (peak_memory(lambda s=s: net(torch.zeros(1, 3, s, s))) for s in (8, 16))
    assert small > 0 and large == pytest.approx(4 * small, rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_costs_are_measured_on_cuda():
    net = RCAN(2, n_resgroups=1, n_resblocks=1, n_feats=8, reduction=4).cuda()
    assert latency(net, (8, 8), repeats=3).median_ms > 0
    with torch.inference_mode():
        assert peak_memory(lambda: net(torch.zeros(1, 3, 32, 32, device="cuda")), "cuda") > 32 * 32 * 8 * 4


def test_networks_are_timed_in_turns_and_equal_ones_together():
    class Named(nn.Conv2d):
        "A convolution that notes when it is called."

        def __init__(self, name: str, calls: list, width: int = 3):
            super().__init__(3, width, 1)
            self.name, self.calls = name, calls

        def forward(self, lr_imgs):
            self.calls.append(self.name)
            return super().forward(lr_imgs)

    calls: list = []
    nets = {name: Named(name, calls, width) for name, width in (("a", 3), ("b", 3), ("c", 4))}
    took = latencies(nets, (8, 8), repeats=5)
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == 8 and all(sorted(turn) == ["a", "b", "c"] for turn in rounds)  # none twice in a row
    assert {turn[0] for turn in rounds} == {"a", "b", "c"}  # each of them begins
    assert took["a"] == took["b"] and [took[name].repeats for name in nets] == [10, 10, 5]
    assert all(net.training for net in nets.values())
