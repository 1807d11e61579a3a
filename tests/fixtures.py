"""Runs for tests: a folder of made-up but plausible content, never shown in any document; a way to prepare one."""
from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image
from scipy.ndimage import gaussian_filter

from fakd.about import environment
from fakd.images import write_image
from fakd.record import Artefact, Record
from fakd.rows import METHODS, Row, summarise
from fakd.run_folder import Run, artefacts, write_record
from fakd.train.config import DistillConfig
from fakd.train.setup import Setup, prepare

SETS = {
    "sample-eval": ["astronaut", "chelsea", "coffee", "motorcycle_left", "rocket"],
    "Set5": ["baby", "bird", "butterfly", "head", "woman"],
}
TAPS = ["body.0=body.0", "body.2=body.1", "body.4=body.2"]
TEACHER = {
    "network": "rcan", "spec": "rcan(n_resgroups=5,n_resblocks=6,n_feats=48)", "params": 1_423_771,
    "macs": 3_270_000_000, "macs_input": [48, 48], "source": "data/weights/rcan-mini-x4.safetensors",
    "digest": "7e" * 32, "assumptions": [], "taps": {t.split("=")[0]: [48, 48, 48] for t in TAPS},
}
STUDENT = {
    "network": "rcan", "spec": "rcan(n_resgroups=3,n_resblocks=2,n_feats=32)", "params": 187_955, "macs": 431_000_000,
    "macs_input": [48, 48], "source": "initialised", "digest": "51" * 32, "assumptions": [],
    "taps": {t.split("=")[1]: [32, 48, 48] for t in TAPS},
}
GIVEN = {"scale": 4, "loss": "0.5*DS+0.5*TS+10*SA", "steps": 600}
RESOLVED = {
    **GIVEN, "preset": "mini", "student": STUDENT["spec"], "teacher": TEACHER["source"], "data": "sample",
    "benchmarks": list(SETS), "taps": TAPS, "batch_size": 8, "patch_px": 24, "learn_rate": 0.0004, "schedule": "cosine",
    "clip_norm": 1.0, "ema": None, "seed": 0, "precision": "bf16", "device": "cpu", "workers": 0, "compare": True,
    "resume": "auto", "out_dir": None,
}


def _versions(hr_img: np.ndarray, gain: float) -> dict[str, np.ndarray]:
    "Stand-ins for what the methods make of one image: between the bicubic image and the original."
    size = (hr_img.shape[1], hr_img.shape[0])
    small = Image.fromarray(hr_img).resize((size[0] // 4, size[1] // 4), Image.Resampling.BICUBIC)
    up = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).astype(float)
    blend = {"bicubic": 0.0, "teacher": 0.5, "plain": 0.3, "plain_equal_time": 0.34, "distilled": 0.3 + gain}
    mixed = {m: np.clip(up + b * (hr_img - up) + 0.5, 0, 255).astype(np.uint8) for m, b in blend.items()}
    return {"lr": np.asarray(small), **mixed, "hr": hr_img}


def _rows(methods: list[str], gain: float) -> list[Row]:
    "PSNR and SSIM a method and image, the distilled student about `gain` dB above the plain one."
    base, rows = {"bicubic": 0.0, "teacher": 1.4, "plain": 0.9, "plain_equal_time": 1.0, "distilled": 0.9 + gain}, []
    for method in methods:
        for name, images in SETS.items():
            for i, image in enumerate(images):
                wobble = 0.9 * gain * math.sin(1.7 * i + len(name)) * (method == "distilled")
                psnr = 24.8 + 1.9 * i + base[method] + wobble
                rows.append(Row.of(method, name, image, 4, psnr, 0.70 + 0.035 * i + base[method] / 60))
    return rows


def _history(path: Path, methods: list[str], steps: int = 600) -> None:
    "Falling noisy losses and a rising held-out PSNR."
    noise = np.random.default_rng(3)
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["method", "step", "time_s", "learn_rate", "loss", "DS", "TS", "SA", "psnr_y"])
        for method in methods:
            for step in range(5, (748 if method == "plain_equal_time" else steps) + 1, 5):
                ds = 6 + 24 * math.exp(-step / 40) + abs(noise.normal(0, 0.8))
                terms = [ds, "", ""] if method != "distilled" else [ds / 2, 0.42 * ds, 0.6 + 2 * math.exp(-step / 90)]
                gain = 0.12 * (method == "distilled")
                psnr = 27.4 + gain - 6 * math.exp(-step / 60) if step % 50 == 0 else ""
                rate = 0.0002 * (1 + math.cos(math.pi * step / steps))
                out.writerow([method, step, round(0.2 * step, 2), rate, sum(t for t in terms if t), *terms, psnr])


def _affinity(path: Path, methods: list[str]) -> None:
    "Rows of the affinity of smoothed colours mixed with smooth noise: the more noise, the farther from the teacher."
    image = skimage.data.astronaut()[:384, 60:444][::8, ::8]
    queries = np.array([[12, 20], [30, 8], [40, 34]])
    stored: dict[str, Any] = {"image": image, "queries": queries, "taps": np.array(TAPS)}
    for method, strength in (("teacher", 0.05), ("plain", 0.5), ("distilled", 0.2)):
        for tap in range(len(TAPS) if method in methods else 0):
            noise = np.random.default_rng([tap, len(method)]).normal(size=(*image.shape[:2], 16))
            noise = gaussian_filter(noise, (1.5, 1.5, 0)) * strength * 4
            colour = gaussian_filter(image - image.mean((0, 1)), (0.5 + tap, 0.5 + tap, 0)) / 60
            maps = np.concatenate([colour, noise, np.ones((*image.shape[:2], 1))], axis=2)
            unit = maps / np.linalg.norm(maps, axis=2, keepdims=True)
            stored[f"{method}/{tap}"] = np.stack([unit @ unit[y, x] for y, x in queries]).astype(np.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **stored)


def _progress(folder: Path, methods: list[str]) -> None:
    "Distances of the affinity that fall while training goes on."
    steps = np.array([1, 2, 5, 10, 20, 50, 100, 200, 500, 600])
    for method, speed in (("plain", 0.05), ("distilled", 0.12)):
        if method in methods and "teacher" in methods:
            far = 0.4 / (1 + speed * np.log(steps))[:, None] * np.array([1.0, 0.8, 0.6])
            maps = {f"rows/{i}": np.zeros((len(steps), 6, 8), np.float16) for i in range(len(TAPS))}
            maps |= {f"teacher/{i}": np.ones((6, 8), np.float16) for i in range(len(TAPS))}
            np.savez(folder / f"progress-{method}.npz", steps=steps, distances=far, taps=np.array(TAPS),
                     query=np.array([2, 3]), image=np.zeros((6, 8, 3), np.uint8),
                     compared=np.full(len(TAPS), 48), **maps)


def _pictures(run: Run, methods: list[str], gain: float) -> None:
    "History, affinity and two images."
    _history(run.dir / "history.csv", [m for m in methods if m in ("plain", "plain_equal_time", "distilled")])
    _affinity(run.dir / "snapshots" / "affinity.npz", methods)
    _progress(run.dir / "snapshots", methods)
    for name in ("chelsea", "coffee"):
        for method, img in _versions(getattr(skimage.data, name)()[:296, :448], max(gain, 0)).items():
            if method in (*methods, "lr", "hr"):
                write_image(run.dir / "snapshots" / "images" / f"sample-eval--{name}" / f"{method}.png", img)


def make_run_fixture(
    folder: str | Path,       # folder of runs; the run gets a folder in it
    gain: float = 0.12,       # dB of the distilled over the plain student
    compare: bool = True,     # with the plain student
    longer: bool = False,     # and with the one that was trained for the same time
    teacher: bool = True,     # with a teacher
    pictures: bool = True,    # with images, affinity and history
    **changes: Any,           # fields of the record to replace
) -> Run:
    "A finished run that looks like one of the main job."
    run = Run.create("distill-x4-rcan-ds-ts-sa-s0-1f3c9a2e", Path(folder))
    wanted = {"plain": compare, "plain_equal_time": compare and longer, "teacher": teacher}
    methods = [m for m in METHODS if wanted.get(m, True)]
    if pictures:
        _pictures(run, methods, gain)
    rows = _rows(methods, gain)
    times = {"plain": (600, 121.4), "plain_equal_time": (748, 150.9), "distilled": (600, 151.4)}
    data = [("sample", "train", 14), ("sample-eval", "validate", 5), *((name, "evaluate", 5) for name in SETS)]
    record: dict[str, Any] = dict(
        run_id=run.id, kind="distill", created="2026-01-02T03:04:05+00:00", finished="2026-01-02T03:09:05+00:00",
        state="finished", digest="1f3c9a2e" + "0" * 56, code_digest="c0de" + "0" * 60,
        given={**GIVEN, **({} if compare else {"compare": False})}, resolved={**RESOLVED, "compare": compare},
        environment={**environment(), "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "clean": True}},
        data=[{"name": n, "role": role, "count": count, "digest": "ab" * 32} for n, role, count in data],
        teacher=TEACHER if teacher else None, student=STUDENT, rows=rows, summary=summarise(rows),
        history={m: {"step": steps, "time_s": t, "steps_per_s": steps / t, "psnr_y": 27.4}
                 for m, (steps, t) in times.items() if m in methods},
        artefacts=[*artefacts(run), Artefact(path="weights/distilled.safetensors", bytes=760_412, sha256="5a" * 32)],
    )
    write_record(run, Record(**{**record, **changes}))
    return run


def prepared(**asked: Any) -> Setup:
    "A distillation run, prepared."
    return prepare(DistillConfig(**asked).resolve())
