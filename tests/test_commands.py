"The command `fakd` for what Python can: settings from the config, pages, exit codes, completion."
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fakd.cli import main
from fakd.images import Picture, write_picture
from fakd.nets.weights import save_weights
from fakd.nets.zoo import make_net
from fakd.run_folder import Run
from fakd.study.config import EvaluateConfig
from fakd.train.config import DistillConfig, TeacherConfig

ROOT = Path(__file__).parents[1]
FAKD = [sys.executable, "-c", "import sys; from fakd.start import main; sys.exit(main())"]
NET = "rcan(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)"


def helped(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command, config", [("distill", DistillConfig), ("teacher", TeacherConfig),
                                             ("evaluate", EvaluateConfig)])
def test_help_shows_every_field_with_its_default_and_meaning(command, config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    text = " ".join(helped(command, capsys).split())
    for name, field in config.model_fields.items():
        option = re.escape(name.replace("_", "-"))
        meaning = re.escape(f"{field.description} (default: {field.default})")
        assert re.search(rf" --{option} \S+ {meaning}", text), name
    assert "--steps INT" in text or command == "evaluate"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Images, a teacher and a run made by the command line."
    folder, draws = tmp_path_factory.mktemp("commands"), np.random.default_rng(0)
    for k in range(2):
        img = np.kron(draws.integers(256, size=(16, 16, 3)), np.ones((4, 4, 1))).astype(np.uint8)
        write_picture(folder / "own" / f"{k}.png", Picture(img))
    save_weights(make_net(NET.replace("n_feats=8", "n_feats=16"), 2, seed=5), folder / "teacher.safetensors")
    return folder


def asked(folder):
    own = str(folder / "own")
    return ["distill", "--scale", "2", "--steps", "2", "--batch_size=2", "--patch-px", "12", "--student", NET,
            "--teacher", str(folder / "teacher.safetensors"), "--data", own, "--benchmarks", own, "--device", "cpu",
            "--no-compare", "--taps", "[1, 3]", "--out_dir", str(folder / "runs")]


def test_a_run_by_the_command_line_is_that_of_python_with_its_pages(folder, capsys):
    assert main(asked(folder)) == 0
    said = capsys.readouterr().out
    (place,) = (folder / "runs").iterdir()
    assert f"Report: {place / 'report.html'}" in said and f"Explorer: {place / 'explorer.html'}" in said
    assert "Student, distilled" in said and (place / "report.html").is_file() and (place / "explorer.html").is_file()
    given = Run(place).record.given
    wanted = {"scale": 2, "steps": 2, "batch_size": 2, "patch_px": 12, "taps": [1, 3], "compare": False}
    assert {name: given[name] for name in wanted} == wanted
    for name in ("report.html", "explorer.html"):
        (place / name).unlink()
    assert main(["report", str(place)]) == 0 and (place / "report.html").is_file()
    assert main(["report", str(folder / "runs")]) == 0 and place.name in (folder / "runs/index.html").read_text()


def test_weights_are_evaluated(folder, capsys):
    assert main(["evaluate", "--weights", str(folder / "teacher.safetensors"), "--benchmarks", str(folder / "own"),
                 "--repeats", "0", "--device", "cpu", "--out-dir", str(folder / "evaluations")]) == 0
    (place,) = (folder / "evaluations").iterdir()
    assert f"Report: {place / 'report.html'}" in capsys.readouterr().out
    assert {row.method for row in Run(place).record.rows} == {"bicubic", "teacher"}


def test_a_network_is_exported_once(folder, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    command = ["export", str(folder / "teacher.safetensors"), "-o", str(tmp_path / "net.onnx")]
    assert main(command) == 0 and "grey levels from PyTorch" in capsys.readouterr().out
    (tmp_path / "net.onnx").write_bytes(b"mine")
    assert main(command) == 2 and "--overwrite replaces it" in capsys.readouterr().err
    assert (tmp_path / "net.onnx").read_bytes() == b"mine"
    assert main([*command, "--overwrite"]) == 0 and (tmp_path / "net.onnx").stat().st_size > 100_000


def test_losses_and_networks_are_listed(capsys):
    assert main(["losses"]) == 0 and main(["nets"]) == 0
    said = capsys.readouterr().out
    assert "PSA" in said and "k=1, pool=max" in said and "data/weights/rcan-mini-x4.safetensors" in said
    assert re.search(r"rcan +teacher +15,592,379 ", said)


@pytest.mark.parametrize("words, said", [
    (["--scale", "5"], "scale 5: choose 2, 3, 4 or 8"),
    (["--steps", "many"], "steps 'many'"),
    (["--loss", "DS+SAA"], 'Did you mean "SA"'),
    (["--learn_rate", "-1"], "learn_rate -1"),
])
def test_a_wrong_value_is_refused_in_the_configs_words(words, said, capsys):
    assert main(["distill", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [
    (["distill", "--stesp", "5"], 'unknown: --stesp. Did you mean "--steps"?'),
    (["evaluate", "--benchmark=Set5"], 'unknown: --benchmark=Set5. Did you mean "--benchmarks"?'),
    (["report"], "RUN"),
    (["completion", "tcsh"], "'bash', 'zsh', 'fish'"),
])
def test_wrong_use_shows_the_usage_and_the_nearest_option(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_diverged_training_is_a_failure_without_a_traceback(folder, tmp_path, capsys):
    words = [*asked(folder), "--learn-rate", "1e12", "--schedule", "constant", "--steps", "40", "--precision", "fp32"]
    assert main([*words, "--out-dir", str(tmp_path)]) == 1
    assert "distilled, step" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_fault(tmp_path):
    command = f"{sys.executable} -c '{FAKD[2]}' losses | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("term") and done.stderr == ""


@pytest.mark.parametrize("after", [0.1, 0.5, 1.0])
def test_ctrl_c_while_it_starts_gives_130_and_no_traceback(after):
    code = "import sys; from fakd.start import main; print('now', flush=True); sys.exit(main())"
    run = subprocess.Popen([sys.executable, "-c", code, "losses"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True)
    assert run.stdout.readline() == "now\n"
    time.sleep(after)
    run.send_signal(signal.SIGINT)
    said = run.communicate()[1]
    assert (run.returncode, said) in ((130, "fakd: stopped by Ctrl-C\n"), (0, ""))  # 0: it was faster


def test_ctrl_c_in_a_training_gives_130_and_says_where_it_goes_on(folder, tmp_path):
    words = [*asked(folder), "--steps", "100000", "--out-dir", str(tmp_path)]
    run = subprocess.Popen([*FAKD, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("*/snapshots/progress-distilled.npz")) and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    said = run.communicate()[1]
    assert run.returncode == 130 and "Traceback" not in said
    assert re.search(r"fakd: SIGINT at step \d+ of distilled: saved; start the same run again", said)


# Results of `fakd upscale`


@pytest.mark.parametrize("out, said", [
    ("y.gif", 'y.gif: cannot write ".gif". Known: .png .tif'),
    ("y.heic", 'cannot write ".heic"'),
    ("new/y.jp2", 'cannot write ".jp2"'),
    ("x.jpg/y", "x.jpg is a file"),
    ("plain", "plain is a file"),
])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, monkeypatch, folder, capsys, out, said):
    monkeypatch.chdir(tmp_path)
    write_picture("x.jpg", Picture(np.full((8, 8, 3), 9, np.uint8)))
    Path("plain").touch()
    assert main(["upscale", "x.jpg", "-o", out, "-w", str(folder / "teacher.safetensors")]) == 2
    assert said in capsys.readouterr().err and sorted(os.listdir()) == ["plain", "x.jpg"]


@pytest.mark.parametrize("out, made", [("y", "y/x.png"), ("y.gif/", "y.gif/x.png"), ("y.png", "y.png"),
                                       ("old.v2", "old.v2/x.png"), ("a/b/y.TIF", "a/b/y.TIF")])
def test_a_name_with_an_ending_is_a_file_and_any_other_a_folder(tmp_path, monkeypatch, folder, out, made):
    monkeypatch.chdir(tmp_path)
    Path("old.v2").mkdir()
    write_picture("x.jpg", Picture(np.full((8, 8, 3), 9, np.uint8)))
    assert main(["upscale", "x.jpg", "-o", out, "-q", "-w", str(folder / "teacher.safetensors")]) == 0
    assert [p.as_posix() for p in Path().rglob("*") if p.is_file() and p.name != "x.jpg"] == [made]


# Completion


@pytest.mark.parametrize("line, wanted", [
    ("fakd ", {"upscale", "distill", "data", "completion", "--help"}),
    ("fakd dis", {"distill"}),
    ("fakd distill --le", {"--learn-rate"}),
    ("fakd distill --scale ", {"2", "3", "4", "8"}),
    ("fakd distill --scale 4 --compare ", {"true", "false"}),
    ("fakd data ", {"list", "verify", "get"}),
    ("fakd completion z", {"zsh"}),
    ("fakd upscale --sk", {"--skip-existing"}),
])
def test_bash_completes_commands_options_and_words(tmp_path, capsys, line, wanted):
    if not shutil.which("bash"):
        pytest.skip("needs bash, which this machine does not have")
    assert main(["completion", "bash"]) == 0
    (tmp_path / "fakd.sh").write_text(capsys.readouterr().out)
    words = line.split(" ")
    ask = f'source fakd.sh; COMP_WORDS=({" ".join(w or chr(39) * 2 for w in words)}); COMP_CWORD={len(words) - 1}; '
    done = subprocess.run(["bash", "-ec", ask + '_fakd; printf "%s\\n" "${COMPREPLY[@]}"'], cwd=tmp_path, text=True,
                          capture_output=True, check=True)
    found = set(done.stdout.split())
    assert wanted <= found and (line == "fakd " or wanted == found)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_whole_and_name_every_option(shell, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for config in (DistillConfig, TeacherConfig, EvaluateConfig):
        assert all(name.replace("_", "-") in text for name in config.model_fields)
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
