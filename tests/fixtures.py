"""A run folder of made-up but plausible content, for tests of what reads run folders. Never shown in any document."""
from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image
from scipy.ndimage import gaussian_filter

from fakd.core import write_image
from fakd.record import Artefact, Record, Row, Run, artefacts, environment, summarise, write_record

SETS = {"sample-eval": ["astronaut", "chelsea", "coffee", "motorcycle_left", "rocket"], "Set5": ["baby", "bird", "butterfly", "head", "woman"]}
TAPS = ["body.0=body.0", "body.2=body.1", "body.4=body.2"]
NET = {"network": "rcan", "macs_input": [48, 48], "assumptions": []}
TEACHER = {**NET, "spec": "rcan(n_resgroups=5,n_resblocks=6,n_feats=48)", "params": 1_423_771, "macs": 3_270_000_000, "digest": "7e" * 32,
           "source": "data/weights/rcan-mini-x4.safetensors", "taps": {t.split("=")[0]: [48, 48, 48] for t in TAPS}}
STUDENT = {**NET, "spec": "rcan(n_resgroups=3,n_resblocks=2,n_feats=32)", "params": 187_955, "macs": 431_000_000, "digest": "51" * 32,
           "source": "initialised", "taps": {t.split("=")[1]: [32, 48, 48] for t in TAPS}}
GIVEN = {"scale": 4, "loss": "0.5*DS+0.5*TS+10*SA", "steps": 600}
RESOLVED = {**GIVEN, "preset": "mini", "student": STUDENT["spec"], "teacher": TEACHER["source"], "data": "sample", "benchmarks": ["sample-eval", "Set5"],
            "taps": TAPS, "batch_size": 8, "patch_px": 24, "learn_rate": 0.0004, "schedule": "cosine", "clip_norm": 1.0, "ema": None, "seed": 0,
            "precision": "bf16", "device": "cpu", "workers": 0, "compare": True, "resume": "auto", "out_dir": None}


def _versions(hr_img: np.ndarray, gain: float) -> dict[str, np.ndarray]:
    "Stand-ins for what the methods make of one image: the original, more or less blurred."
    size = (hr_img.shape[1], hr_img.shape[0])
    lr_img = np.asarray(Image.fromarray(hr_img).resize((size[0] // 4, size[1] // 4), Image.Resampling.BICUBIC))
    up = np.asarray(Image.fromarray(lr_img).resize(size, Image.Resampling.BICUBIC)).astype(float)
    blend = {"bicubic": 0.0, "teacher": 0.5, "plain": 0.3, "distilled": 0.3 + gain}
    mixed = {m: np.clip(up + b * (hr_img - up) + 0.5, 0, 255).astype(np.uint8) for m, b in blend.items()}
    return {"lr": lr_img, **mixed, "hr": hr_img}


def _rows(methods: list[str], gain: float) -> list[Row]:
    "PSNR and SSIM a method and image, the distilled student `gain` dB above the plain one on average."
    base, rows = {"bicubic": 0.0, "teacher": 1.4, "plain": 0.9, "distilled": 0.9 + gain}, []
    for method in methods:
        for name, images in SETS.items():
            for i, image in enumerate(images):
                wobble = 0.0 if gain == 0 else 0.6 * abs(gain) * math.sin(3.1 * i + len(name)) * (method == "distilled")
                psnr = 24.8 + 1.9 * i + base[method] + wobble
                rows.append(Row.of(method, name, image, 4, psnr, 0.70 + 0.035 * i + base[method] / 60))
    return rows


def _history(path: Path, methods: list[str], steps: int) -> None:
    "Falling noisy losses and a rising held-out PSNR."
    noise = np.random.default_rng(3)
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["method", "step", "time_s", "learn_rate", "loss", "DS", "TS", "SA", "psnr_y"])
        for method in methods:
            for step in range(5, steps + 1, 5):
                ds = 6 + 24 * math.exp(-step / 40) + abs(noise.normal(0, 0.8))
                terms = [ds, "", ""] if method == "plain" else [ds / 2, 0.42 * ds, 0.6 + 2 * math.exp(-step / 90)]
                psnr = 27.4 + 0.12 * (method == "distilled") - 6 * math.exp(-step / 60) if step % 50 == 0 else ""
                loss = sum(t for t in terms if t)
                out.writerow([method, step, round(0.2 * step, 2), 0.0004 * (1 + math.cos(math.pi * step / steps)) / 2, loss, *terms, psnr])


def _affinity(path: Path, methods: list[str]) -> None:
    "Rows of the affinity of smoothed colours mixed with smooth noise: the more noise, the farther from the teacher."
    image = skimage.data.astronaut()[:384, 60:444][::8, ::8]
    queries = np.array([[12, 20], [30, 8], [40, 34]])
    stored: dict[str, Any] = {"image": image, "queries": queries, "taps": np.array(TAPS)}
    for method, strength in (("teacher", 0.05), ("plain", 0.9), ("distilled", 0.35)):
        for tap in range(len(TAPS) if method in methods else 0):
            noise = gaussian_filter(np.random.default_rng([tap, len(method)]).normal(size=(*image.shape[:2], 16)), (1.5, 1.5, 0))
            colour = gaussian_filter(image.astype(float) - image.mean((0, 1)), (0.5 + tap, 0.5 + tap, 0)) / 60
            maps = np.concatenate([colour, noise * strength * 4, np.full((*image.shape[:2], 1), 0.4)], axis=2)
            unit = maps / np.linalg.norm(maps, axis=2, keepdims=True)
            stored[f"{method}/{tap}"] = np.stack([unit @ unit[y, x] for y, x in queries]).astype(np.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **stored)


def make_run_fixture(
    folder: str | Path,       # folder of runs; the run gets a folder in it
    gain: float = 0.12,       # dB of the distilled over the plain student
    compare: bool = True,     # with the plain student
    teacher: bool = True,     # with a teacher
    pictures: bool = True,    # with images, affinity and history
    **changes: Any,           # fields of the record to replace
) -> Run:
    "A finished run that looks like one of the main job."
    run = Run.create("distill-x4-rcan-ds-ts-sa-s0-1f3c9a2e", Path(folder))
    absent = {m for m, wanted in (("plain", compare), ("teacher", teacher)) if not wanted}
    methods = [m for m in ("bicubic", "teacher", "plain", "distilled") if m not in absent]
    students = [m for m in methods if m in ("plain", "distilled")]
    if pictures:
        _history(run.dir / "history.csv", students, 600)
        _affinity(run.dir / "snapshots" / "affinity.npz", [m for m in methods if m != "bicubic"])
        for name in ("chelsea", "coffee"):
            hr_img = getattr(skimage.data, name)()[:296, :448]
            for method, img in _versions(hr_img, max(gain, 0)).items():
                if method in (*methods, "lr", "hr"):
                    write_image(run.dir / "snapshots" / "images" / f"sample-eval--{name}" / f"{method}.png", img)
    rows = _rows(methods, gain)
    history = {m: {"steps": 600, "time_s": 121.4 + 30 * (m == "distilled"), "psnr_y": 27.4, "best_psnr_y": 27.41} for m in students}
    record = dict(
        run_id=run.id, kind="distill", created="2026-01-02T03:04:05+00:00", finished="2026-01-02T03:09:05+00:00", state="finished",
        digest="1f3c9a2e" + "0" * 56, given={**GIVEN, **({} if compare else {"compare": False})}, resolved={**RESOLVED, "compare": compare},
        environment={**environment(), "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "clean": True}}, code_digest="c0de" + "0" * 60,
        data=[{"name": "sample", "role": "train", "count": 14, "digest": "ab" * 32}, {"name": "sample-eval", "role": "validate", "count": 5, "digest": "cd" * 32},
              {"name": "sample-eval", "role": "evaluate", "count": 5, "digest": "cd" * 32}, {"name": "Set5", "role": "evaluate", "count": 5, "digest": "ef" * 32}],
        teacher=TEACHER if teacher else None, student=STUDENT, rows=rows, summary=summarise(rows), history=history,
        artefacts=[*artefacts(run), Artefact(path="weights/distilled.safetensors", bytes=760_412, sha256="5a" * 32)],
    )
    write_record(run, Record(**{**record, **changes}))
    return run
