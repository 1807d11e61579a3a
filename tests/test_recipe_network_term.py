"""CONTRIBUTING's recipes for a network and a loss term, followed to the letter in a copy of the project."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from test_recipes import Copy

ROOT = Path(__file__).parents[1]

NETWORK = [  # cells of nbs/24_nets.toy.ipynb
    "#| default_exp nets.toy",
    """#| export
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from fakd.nets.blocks import MeanShift, ResBlock, Upsampler, base_sizes, check_scale, conv, count_keys, rename_keys""",
    '''#| export
class Toy(nn.Module):
    "Residual blocks between two convolutions."

    SIZES: ClassVar[dict[str, dict[str, Any]]] = {
        "teacher": {"n_resblocks": 20, "n_feats": 64},
        "student": {"n_resblocks": 8, "n_feats": 48},
        "mini_teacher": {"n_resblocks": 14, "n_feats": 48},
        "mini_student": {"n_resblocks": 5, "n_feats": 32},
    }

    def __init__(self, scale: int, n_resblocks: int = 20, n_feats: int = 64):
        super().__init__()
        self.scale, self.sizes = check_scale(scale), {"n_resblocks": n_resblocks, "n_feats": n_feats}
        self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        self.head = nn.Sequential(conv(3, n_feats))
        self.trunk = nn.Sequential(*(ResBlock(n_feats) for _ in range(n_resblocks)))
        self.tail = nn.Sequential(Upsampler(scale, n_feats), conv(n_feats, 3))

    def forward(self, lr_imgs: Tensor) -> Tensor:
        maps = self.head(self.sub_mean(lr_imgs))
        return self.add_mean(self.tail(maps + self.trunk(maps)))

    def tap_names(self) -> dict[str, str]:
        "The head, two places between, and what goes into the upsampler."
        n = int(self.sizes["n_resblocks"])
        ends = dict.fromkeys(end - 1 for end in (n // 3, 2 * n // 3) if end)
        return {"head": "head", **{f"block{end}": f"trunk.{end}" for end in ends}, "last": "tail.input"}

    @staticmethod
    def infer_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
        "Scale and sizes from the names and shapes of a state dict."
        scale, n_feats = base_sizes(state)
        state["trunk.0.body.0.weight"]  # a name that no other network has
        return {"scale": scale, "n_resblocks": count_keys(state, r"trunk\\.(\\d+)\\."), "n_feats": n_feats}

    @staticmethod
    def rename(keys: Iterable[str]) -> dict[str, str]:
        "Our names: those of the file."
        return rename_keys(keys, basicsr=False)''',
]


@pytest.fixture
def copy(tmp_path):
    copy = Copy(tmp_path / "fakd")
    shutil.copytree(ROOT / "tests", copy.root / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def contract(copy, file, name):
    "The tests that every line of a table must pass, for this line."
    told = copy.run(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file, "-k", name)
    assert " passed" in told, told


RUN = """
import warnings; warnings.simplefilter("ignore")
from fakd.runs import distill
run = distill(scale=4, student="{student}", teacher="data/weights/rcan-mini-x4.safetensors", loss="{loss}",
              steps=1, batch_size=2, patch_px=8, equal_time=False, compare=False, device="cpu", precision="fp32")
print(run.record.state, run.record.student["spec"])
print(open(run.dir / "history.csv").readline().strip())
"""


def test_a_network(copy):
    like = json.loads((ROOT / "nbs/22_nets.edsr.ipynb").read_text(encoding="utf-8"))
    title = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# nets.toy\n\n> A toy.\n"}
    code = [{"cell_type": "code", "id": f"cell{i}", "metadata": {}, "outputs": [], "execution_count": None,
             "source": source} for i, source in enumerate(NETWORK)]
    (copy.root / "nbs/24_nets.toy.ipynb").write_text(json.dumps(like | {"cells": [title, *code]}), encoding="utf-8")
    last = "from fakd.nets.san import SAN"
    copy.put("26_nets.zoo", last, f"{last}\nfrom fakd.nets.toy import Toy")
    copy.put("26_nets.zoo", '"san": SAN}', '"san": SAN, "toy": Toy}')
    copy.put("07_digest", '"nets.san", ', '"nets.san", "nets.toy", ')
    copy.run("nbdev_export")
    contract(copy, "tests/test_nets.py", "toy")
    contract(copy, "tests/test_digest.py", "toy")
    told = copy.python("""
import torch
from fakd.nets.weights import load_net, save_weights
from fakd.nets.zoo import make_net, net_spec
net = make_net("toy", 4, "mini_student").eval()
lr_imgs = 255 * torch.rand(1, 3, 8, 9)
save_weights(net, "own.safetensors")
torch.save({"params": {f"module.{k}": v for k, v in net.state_dict().items()}}, "found.pth")  # as others write it
for path in ("own.safetensors", "found.pth"):
    again = load_net(path)
    assert torch.equal(again(lr_imgs), net(lr_imgs))
    print(net_spec(again), "x", again.scale)
""").splitlines()
    assert told == ["toy(n_resblocks=5,n_feats=32) x 4"] * 2
    listed = copy.python("from fakd.cli import main; main(['nets'])")
    assert [line.split()[:2] for line in listed.splitlines() if line.startswith("toy")] == [
        ["toy", role] for role in ("teacher", "student", "mini_teacher", "mini_student")]
    told = copy.python(RUN.format(student="toy(n_resblocks=3,n_feats=8)", loss="DS+TS+10*SA"))
    assert told.splitlines()[-2] == "finished toy(n_resblocks=3,n_feats=8)"


TERM = '''#| export
class Peak(MapTerm):
    "Difference of the largest channel at each position."

    least = MapTerm.least | {"positions": 1}

    def __init__(
        self,
        gain: float = 1.0,  # factor of the difference
    ):
        super().__init__()
        self.gain = gain

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        "Mean absolute difference of the maxima over channels."
        return self.gain * mean_abs(student.amax(1), teacher.amax(1))'''


def test_a_loss_term(copy):
    path = copy.root / "nbs/35_distil.features.ipynb"
    nb = json.loads(path.read_text(encoding="utf-8"))
    nb["cells"].append({"cell_type": "code", "id": "peak", "metadata": {}, "outputs": [], "execution_count": None,
                        "source": TERM})
    path.write_text(json.dumps(nb), encoding="utf-8")
    copy.put("38_distil.loss", "features import AT, CWD, FSP, MGD, NST, VID, FitNet",
             "features import AT, CWD, FSP, MGD, NST, VID, FitNet, Peak")
    line = '"Peak": LossTerm(Peak, _MAPS + "mean |largest channels|", "nobody, 2026"),'
    copy.put("38_distil.loss", '    "SP": LossTerm(SP,', f'    {line}\n    "SP": LossTerm(SP,')
    copy.run("nbdev_export")
    tests = copy.root / "tests/test_losses.py"
    text = tests.read_text(encoding="utf-8")
    by_hand = '"Peak": ("Peak(gain=2)", (maps_of([1, 0], [3, 1]), maps_of([1, 1])), 2),'
    for table, entry in (("INVARIANCES = {", '"Peak": [shuffled],'), ("BY_HAND = {", by_hand)):
        assert text.count(table) == 1
        text = text.replace(table, f"{table}\n    {entry}")
    tests.write_text(text, encoding="utf-8")
    contract(copy, "tests/test_losses.py", "Peak")
    listed = copy.python("from fakd.cli import main; main(['losses'])")
    (row,) = (line for line in listed.splitlines() if line.startswith("Peak"))
    assert all(word in row for word in ("gain=1.0", "any", "mean |largest channels|", "nobody, 2026"))
    student = "rcan(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)"
    told = copy.python(RUN.format(student=student, loss="DS+5*Peak(gain=2)"))
    state, history = told.splitlines()[-2:]
    assert state == f"finished {student}" and "Peak" in history.split(",")
