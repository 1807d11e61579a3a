"""The paper preset is FAKD's recipe to the letter: its scripts, its options' defaults, its networks.

Numbers below are those of the authors' code (commit 589d35f) as its scripts call it, at all four scales.
"""
import math

import numpy as np
import pytest
import torch

from fakd.core import FakdError, parse_spec
from fakd.data.patches import Patches
from fakd.data.sets import image_set
from fakd.distil.loss import DistillLoss
from fakd.distil.taps import resolve_taps, tap_shapes
from fakd.images import write_image
from fakd.nets.weights import save_weights
from fakd.nets.zoo import NETS, make_net
from fakd.train.config import DistillConfig, TeacherConfig
from fakd.train.networks import str_net
from fakd.train.presets import PRESETS
from fakd.train.schedules import learn_rate_at
from fakd.train.setup import prepare
from fakd.train.teacher import Teacher
from fakd.train.trainer import Trainer

SCALES = (2, 3, 4, 8)
RECIPE = {
    "data": "DIV2K", "benchmarks": "Set5+Set14+B100+Urban100", "loss": "0.5*DS+0.5*TS+10*SA",
    "steps": 200_000, "batch_size": 16, "accumulate": 1, "patch_px": 48, "learn_rate": 1e-4,
    "schedule": "step(at=[149000],gamma=0.5)", "clip_norm": 0.0, "ema": 0.0, "compare": True,
}
SIZES = {
    ("rcan", "teacher"): {"n_resgroups": 10, "n_resblocks": 20, "n_feats": 64, "reduction": 16},
    ("rcan", "student"): {"n_resgroups": 10, "n_resblocks": 6, "n_feats": 64, "reduction": 16},
    ("san", "teacher"): {"n_resgroups": 20, "n_resblocks": 10, "n_feats": 64, "reduction": 16},
    ("san", "student"): {"n_resgroups": 6, "n_resblocks": 10, "n_feats": 64, "reduction": 16},
    ("edsr", "teacher"): {"n_resblocks": 32, "n_feats": 256, "res_scale": 0.1},
    ("edsr", "student"): {"n_resblocks": 16, "n_feats": 64, "res_scale": 1.0},
}
PARAMETERS = {  # x2, x3, x4, x8, the 24 numbers of the mean shifts included; entries of the state dict at x4
    ("rcan", "teacher"): ((15_444_667, 15_629_307, 15_592_379, 15_740_091), 1634),
    ("rcan", "student"): ((5_023_627, 5_208_267, 5_171_339, 5_319_051), 514),
    ("san", "teacher"): ((15_714_872, 15_899_512, 15_862_584, 16_010_296), 967),
    ("san", "student"): ((4_849_906, 5_034_546, 4_997_618, 5_145_330), 309),
    ("edsr", "teacher"): ((40_729_627, 43_680_027, 43_089_947, 45_450_267), 142),
    ("edsr", "student"): ((1_369_883, 1_554_523, 1_517_595, 1_665_307), 78),
}
TAPS = {  # where FAKD's feature lists 1 and 2 are taken: after this many groups (rcan, san) or blocks (edsr)
    ("rcan", "teacher"): (3, 7), ("rcan", "student"): (3, 7),  # after groups 2 and 6, counted from 0
    ("san", "teacher"): (7, 14), ("san", "student"): (2, 4),   # after groups 6 and 13, 1 and 3
    ("edsr", "teacher"): (10, 21), ("edsr", "student"): (5, 10),
}
every_network = pytest.mark.parametrize("name", [
    pytest.param(n, marks=pytest.mark.skipif(n not in NETS, reason=f"{n} is not in NETS yet")) for n in
    ("rcan", "edsr", "san")
])
every_scale = pytest.mark.parametrize("scale", SCALES)


def fakd_taps(name, scale):
    "The scripts' --features: [2,3] for RCAN x3, [1,2,3] else."
    return [2, 3] if (name, scale) == ("rcan", 3) else [1, 2, 3]


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    "A config for a network and a scale, resolved where every set it names is present (one small image each)."
    folder = tmp_path_factory.mktemp("paper")
    img = np.zeros((16, 16, 3), np.uint8)
    write_image(folder / "sets/DIV2K/DIV2K_train_HR/0001.png", img)
    for name in ("Set5", "Set14", "B100", "Urban100"):
        write_image(folder / f"sets/benchmark/{name}/HR/one.png", img)

    def resolved(name, scale, **given):
        teacher = folder / f"{name}-x{scale}.safetensors"
        if not teacher.exists():
            save_weights(make_net(name, scale, "mini_student"), teacher)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FAKD_DATA", str(folder / "sets"))
            config = {"preset": "paper", "student": name, "scale": scale, "teacher": str(teacher), "device": "cpu"}
            return DistillConfig(**(config | given)).resolve()

    return resolved


def on_meta(spec, scale):
    "A network of any size without memory for its values."
    term = parse_spec(spec)[0]
    with torch.device("meta"):
        return NETS[term.name](scale=scale, **term.options)


# The configuration


@every_network
@every_scale
def test_every_field_is_that_of_fakds_script(paper, name, scale):
    cfg = paper(name, scale)
    assert {field: getattr(cfg, field) for field in RECIPE} == RECIPE
    assert cfg.taps == fakd_taps(name, scale)
    (student,) = parse_spec(cfg.student)
    assert (student.name, student.options) == (name, SIZES[name, "student"])
    (teacher,) = parse_spec(str_net(name, "teacher"))
    assert (teacher.name, teacher.options) == (name, SIZES[name, "teacher"])


@every_network
@every_scale
def test_the_preset_says_nothing_that_fakd_does_not(name, scale):
    "No field beyond those compared here, except the teacher's weights and the precision, which have their own tests."
    preset = PRESETS["paper"](name, scale)
    assert preset.keys() - RECIPE.keys() - {"teacher", "precision"} == {"taps"}
    assert {field: preset[field] for field in preset.keys() & RECIPE.keys()}.items() <= RECIPE.items()


@every_network
def test_it_trains_in_single_precision(paper, name):
    "FAKD's --precision is single, whatever the device could do; a precision that is asked for wins."
    assert paper(name, 4).precision == "fp32"
    assert paper(name, 4, precision="bf16").precision == "bf16"


@every_network
def test_values_that_are_given_win_and_the_others_stay(paper, name):
    cfg = paper(name, 3, batch_size=4, taps=[1])
    assert (cfg.batch_size, cfg.taps, cfg.steps, cfg.patch_px) == (4, [1], 200_000, 48)


@every_network
def test_without_weights_for_the_teacher_it_stops_and_says_how_to_get_them(paper, name):
    with pytest.raises(FakdError, match="no weights for it.*run_teacher.ipynb"):
        paper(name, 4, teacher=None)


@every_network
@every_scale
def test_hr_patches_are_those_of_the_scripts(paper, name, scale):
    assert scale * paper(name, scale).patch_px == {2: 96, 3: 144, 4: 192, 8: 384}[scale]


def test_the_rate_is_halved_at_the_start_of_epoch_150():
    "An epoch is 1000 updates; epochs 1 to 149 at 1e-4, 150 to 200 at half of it."
    steps, schedule = RECIPE["steps"], RECIPE["schedule"]
    rates = {step: learn_rate_at(step, steps, 1e-4, schedule) for step in (0, 148_999, 149_000, 199_999)}
    assert rates == {0: 1e-4, 148_999: 1e-4, 149_000: 5e-5, 199_999: 5e-5}


@every_network
@every_scale
def test_a_teacher_of_the_preset_has_the_full_size(name, scale, tmp_path, monkeypatch):
    write_image(tmp_path / "DIV2K/DIV2K_train_HR/0001.png", np.zeros((16, 16, 3), np.uint8))
    monkeypatch.setenv("FAKD_DATA", str(tmp_path))
    cfg = TeacherConfig(preset="paper", net=name, scale=scale, benchmarks="sample-eval", device="cpu").resolve()
    assert parse_spec(cfg.net)[0].options == SIZES[name, "teacher"]
    same = ("data", "steps", "batch_size", "patch_px", "learn_rate", "schedule", "clip_norm", "ema")
    assert {field: getattr(cfg, field) for field in same} == {field: RECIPE[field] for field in same}


# The networks


@every_network
@every_scale
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_networks_have_fakds_parameter_counts(name, scale, role):
    net = on_meta(str_net(name, role), scale)
    counts, entries = PARAMETERS[name, role]
    state = net.state_dict()
    shifts = sum(v.numel() for k, v in state.items() if k.startswith(("sub_mean.", "add_mean.")))
    assert shifts == 24
    assert sum(v.numel() for v in state.values()) == counts[SCALES.index(scale)]
    assert scale != 4 or len(state) == entries


@every_network
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_taps_1_and_2_lie_where_fakds_lists_have_them(name, role):
    "What a tap's place says is either a block, or the input of the following one."
    net = on_meta(str_net(name, role), 4)
    places = list(resolve_taps(net, [1, 2]).values())
    numbers = [int(next(part for part in place.split(".") if part.isdigit())) for place in places]
    done = [n if place.endswith(".input") else n + 1 for n, place in zip(numbers, places, strict=True)]
    assert tuple(done) == TAPS[name, role]


# Two steps


def two_steps(cfg, teacher_net):
    "The config's own student, teacher, loss and trainer, on small patches of the sample images."
    small = cfg.model_copy(update={"batch_size": 2, "patch_px": 8})
    student = make_net(cfg.student, cfg.scale, seed=cfg.seed)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    ours, theirs = (tap_shapes(net, cfg.taps, small.patch_px) for net in (student, teacher_net))
    patches = Patches(image_set("sample").pairs(cfg.scale)[:2], cfg.scale, small.patch_px, cfg.seed)
    teacher = Teacher(teacher_net, cfg.taps)
    trainer = Trainer(student, DistillLoss(cfg.loss, ours, [theirs]), patches, small, [teacher], taps=cfg.taps)
    trainer.fit(2)
    return trainer, before


@every_network
@every_scale
def test_two_steps_at_full_size_run_on_a_cpu(paper, name, scale):
    cfg = paper(name, scale, precision="fp32")
    trainer, before = two_steps(cfg, make_net(str_net(name, "teacher"), scale, seed=1))
    assert trainer.step == 2
    assert trainer.loss.weights == {"DS": 0.5, "TS": 0.5, "SA": 10}
    terms = trainer.guard.means()
    assert list(terms) == ["loss", "DS", "TS", "SA"]
    assert all(math.isfinite(value) and value > 0 for value in terms.values())
    after = trainer.student.state_dict()
    moved = [k for k in before if not torch.equal(before[k], after[k])]
    assert {k.split(".")[0] for k in moved} >= {"head", "tail"}
    assert not any(k.startswith(("sub_mean.", "add_mean.")) for k in moved)
    (group,) = trainer.optimiser.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-8, 0)


@every_network
@pytest.mark.parametrize("scale", [3, 4])
def test_a_run_of_the_preset_is_prepared_with_these_networks_and_taps(name, scale, tmp_path, monkeypatch):
    "The whole way that `-p preset paper -p student NAME` goes, with the teacher's file and one image in DIV2K's place."
    img = np.random.default_rng(0).integers(0, 256, (48 * scale, 48 * scale, 3), np.uint8)
    write_image(tmp_path / "sets/DIV2K/DIV2K_train_HR/0001.png", img)
    for benchmark in ("Set5", "Set14", "B100", "Urban100"):
        write_image(tmp_path / f"sets/benchmark/{benchmark}/HR/one.png", img)
    monkeypatch.setenv("FAKD_DATA", str(tmp_path / "sets"))
    save_weights(make_net(name, scale, "mini_teacher"), tmp_path / "teacher.safetensors")
    config = DistillConfig(preset="paper", student=name, scale=scale, teacher=str(tmp_path / "teacher.safetensors"),
                           device="cpu", out_dir=str(tmp_path / "runs"))
    setup = prepare(config.resolve())
    student = setup.new_student()
    assert sum(v.numel() for v in student.state_dict().values()) == PARAMETERS[name, "student"][0][SCALES.index(scale)]
    wanted = fakd_taps(name, scale)
    assert [list(student.tap_names()).index(pair[0]) for pair in setup.taps] == wanted
    assert [list(setup.teachers[0].net.tap_names()).index(pair[1]) for pair in setup.taps] == wanted
    assert [batch.shape for batch in setup.first_batch()] == [(16, 3, 48, 48), (16, 3, 48 * scale, 48 * scale)]
    assert setup.run.id.startswith(f"distill-x{scale}-{name}-ds-ts-sa-s0-")
