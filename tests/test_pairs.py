"""Patches: aligned, uniform, and a function of seed and step alone."""

import os
import subprocess
import sys
import threading
import weakref
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from fakd.core import FakdError
from fakd.data.pairs import ImageCache, ImagePair, cached_pairs
from fakd.data.patches import Patches, prefetch
from fakd.data.sets import image_set
from fakd.images import write_image


def coordinates(name, h, w, scale, mark=0):
    "A pair whose pixels hold their own coordinates; LR takes the first pixel of each block, then divides by the scale."
    y, x = np.mgrid[: h * scale, : w * scale]
    hr_img = np.stack([y, x, np.full_like(y, mark)], axis=2).astype(np.uint8)
    lr_img = hr_img[::scale, ::scale].copy()
    lr_img[:, :, :2] //= scale
    return ImagePair(name, hr_img, lr_img)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_lr_and_hr_patches_show_the_same_place_in_all_eight_views(scale):
    side = 255 // scale
    pairs = [coordinates("a", side, side - 7, scale), coordinates("b", 12, side, scale, 1)]
    patches = Patches(pairs, scale, 11, seed=scale)
    views = Counter()
    for step in range(12):
        lr_imgs, hr_imgs = patches.batch(step, 16)
        up = lr_imgs.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        place = hr_imgs[:, :2].div(scale, rounding_mode="floor")
        assert torch.equal(place, up[:, :2])         # each HR block lies in its LR pixel
        assert torch.equal(hr_imgs[:, 2], up[:, 2])  # of the same image
        for imgs in zip(lr_imgs, hr_imgs, strict=True):
            steps = [(img[:2, 1, 0] - img[:2, 0, 0], img[:2, 0, 1] - img[:2, 0, 0]) for img in imgs]
            assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))  # turned the same way
            down, right = steps[0]
            views[(*down.int().tolist(), *right.int().tolist())] += 1
    assert len(views) == 8


def test_images_positions_and_views_are_drawn_uniformly():
    patches = Patches([coordinates("small", 9, 9, 2), coordinates("large", 40, 30, 2, 1)], 2, 8, seed=3)
    n = 4000
    drawn = [patches.draw(i)[0] for i in range(n)]
    images = Counter(int(img[0, 0, 2]) for img in drawn)
    places = Counter((int(img[:, :, 0].min()), int(img[:, :, 1].min())) for img in drawn if img[0, 0, 2] == 0)
    views = Counter(tuple((img[1, 0, :2].astype(int) - img[0, 0, :2]).tolist()
                          + (img[0, 1, :2].astype(int) - img[0, 0, :2]).tolist()) for img in drawn)
    for counts, kinds in ((images, 2), (places, 4), (views, 8)):  # each within five standard deviations
        expected = sum(counts.values()) / kinds
        assert len(counts) == kinds and max(abs(c - expected) for c in counts.values()) < 5 * expected**0.5
    edges = [(img[:, :, 0].min(), img[:, :, 1].min()) for img in drawn if img[0, 0, 2] == 1]
    # every position, up to both borders
    assert {y for y, _ in edges} == set(range(33)) and {x for _, x in edges} == set(range(23))


@pytest.fixture
def patches():
    noise = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    return Patches([ImagePair("noise", noise, noise[::4, ::4].copy()), coordinates("a", 20, 20, 4)], 4, 6, seed=5)


def test_batches_have_the_promised_form(patches):
    lr_imgs, hr_imgs = patches.batch(0, 3)
    assert (lr_imgs.shape, hr_imgs.shape) == ((3, 3, 6, 6), (3, 3, 24, 24))
    assert lr_imgs.dtype == hr_imgs.dtype == torch.float32 and hr_imgs.is_contiguous()
    assert hr_imgs.min() >= 0 and 200 < hr_imgs.max() <= 255


def test_a_batch_depends_on_seed_and_step_alone(patches):
    again = Patches(patches.images, 4, 6, seed=5)
    for step in (9, 2, 9):  # in any order
        assert all(map(torch.equal, patches.batch(step, 4), again.batch(step, 4)))
    assert not torch.equal(patches.batch(2, 4)[0], Patches(patches.images, 4, 6, seed=6).batch(2, 4)[0])


def test_sample_numbers_do_not_depend_on_batch_size_or_ranks(patches):
    whole = patches.batch(3, 12)[1]
    assert torch.equal(whole, torch.cat([patches.batch(step, 4)[1] for step in (9, 10, 11)]))
    for world in (2, 3, 4):
        assert torch.equal(whole, torch.cat([patches.batch(3, 12, rank, world)[1] for rank in range(world)]))


def test_another_process_draws_the_same():
    program = ("import numpy as np; from fakd.data.pairs import ImagePair;"
               "from fakd.data.patches import Patches; from fakd.digest import digest;"
               "hr = np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8);"
               "print(digest(list(Patches([ImagePair('a', hr, hr[::2, ::2].copy())], 2, 8, 1).batch(7, 5))))")
    outputs = {subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                              env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}).stdout for seed in ("1", "2")}
    assert len(outputs) == 1 and len(outputs.pop().strip()) == 64


def alive():
    return [t for t in threading.enumerate() if t.name == "fakd-prefetch"]


def test_prefetch_gives_the_same_batches_from_any_start(patches):
    for start, stop, rank, world in ((0, 9, 0, 1), (4, 7, 1, 2), (3, 3, 0, 1)):
        got = list(prefetch(patches, 4, start, stop, rank, world))
        assert [step for step, *_ in got] == list(range(start, stop))
        for step, lr_imgs, hr_imgs in got:
            assert all(map(torch.equal, (lr_imgs, hr_imgs), patches.batch(step, 4, rank, world)))
    assert not alive()


def test_prefetch_ends_its_thread_when_the_loop_is_left(patches):
    batches = prefetch(patches, 2, 0, 10**9)
    assert next(batches)[0] == 0 and len(alive()) == 1
    batches.close()
    assert not alive()
    with pytest.raises(RuntimeError, match="in the loop"):
        for _ in prefetch(patches, 2, 0, 10**9):
            raise RuntimeError("in the loop")
    assert not alive()


def test_prefetch_raises_the_faults_of_its_thread(patches, monkeypatch):
    make = patches.batch

    def breaks(step, *rest):
        if step == 3:
            raise OSError("disk gone")
        return make(step, *rest)

    monkeypatch.setattr(patches, "batch", breaks)
    seen = []
    with pytest.raises(OSError, match="disk gone"):
        for step, *_ in prefetch(patches, 2, 0, 9):
            seen.append(step)
    assert seen == [0, 1, 2] and not alive()


def test_small_images_and_wrong_scales_are_refused_by_name():
    pair = coordinates("tiny", 7, 30, 2)
    with pytest.raises(FakdError, match="tiny: its LR image of 30x7 pixels .* patch_px 8. Use patch_px <= 7"):
        Patches([coordinates("a", 20, 20, 2), pair], 2, 8)
    with pytest.raises(FakdError, match="3x3 pixels .* Leave it out."):  # no run accepts patch_px 3
        Patches([coordinates("a", 20, 20, 2), coordinates("b", 3, 3, 2)], 2, 8)
    with pytest.raises(FakdError, match="tiny: this pair has scale 2, not 4"):
        Patches([pair], 4, 4)
    with pytest.raises(FakdError, match="no images"):
        Patches([], 4, 4)
    with pytest.raises(FakdError, match="at least 1"):
        Patches([pair], 2, 0)
    with pytest.raises(FakdError, match="no whole multiple"):
        ImagePair("odd", np.zeros((8, 9, 3), np.uint8), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(FakdError, match="expected uint8"):
        ImagePair("float", np.zeros((8, 8, 3)), np.zeros((4, 4, 3)))


def numbered(i, h=60, w=44):
    "A pair whose HR pixels say where they are and in which image; an LR pixel is the corner of its block."
    y, x = np.mgrid[:h, :w]
    hr_img = np.stack([y, x, np.full_like(y, i)], 2).astype(np.uint8)
    return ImagePair(f"{i}", hr_img, np.ascontiguousarray(hr_img[::4, ::4]))


def test_cached_patches_show_the_same_place_in_lr_and_hr(tmp_path):
    patches = Patches(cached_pairs("k" * 64, numbered, 5, folder=tmp_path), 4, 7, seed=3)
    for step in range(20):
        lr_imgs, hr_imgs = patches.batch(step, 8)
        for lr_img, hr_img in zip(lr_imgs, hr_imgs, strict=True):
            corners = hr_img.reshape(3, 7, 4, 7, 4).amin(dim=(2, 4))  # each block's smallest row and column
            assert torch.equal(lr_img, corners)


def _build(folder, i):
    pairs = cached_pairs("p" * 64, numbered, 40, folder=folder, workers=2)
    return [bool((p.hr_img[..., 2] == int(p.name)).all()) for p in pairs]


def test_two_processes_may_build_a_cache_at_once(tmp_path):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(_build, [tmp_path] * 2, range(2)))
    assert all(len(r) == 40 and all(r) for r in results)
    assert [p.name for p in (tmp_path / "images").iterdir()] == ["p" * 32]  # nothing half-built is left


def test_an_interrupted_build_leaves_nothing_and_a_damaged_cache_is_built_anew(tmp_path):
    def stops(i):
        if i == 3:
            raise KeyboardInterrupt
        return numbered(i)

    with pytest.raises(KeyboardInterrupt):
        cached_pairs("k" * 64, stops, 9, folder=tmp_path)
    assert list((tmp_path / "images").iterdir()) == []
    cached_pairs("k" * 64, numbered, 9, folder=tmp_path)
    with open(tmp_path / "images" / ("k" * 32) / "pixels.u8", "r+b") as file:
        file.truncate(1000)
    assert not ImageCache("k" * 64, tmp_path).complete
    assert len(cached_pairs("k" * 64, numbered, 9, folder=tmp_path)) == 9


def test_building_holds_only_a_few_images_in_memory(tmp_path):
    alive, most = 0, 0

    def counted(i):
        nonlocal alive, most
        pair = numbered(i)
        alive += 1
        most = max(most, alive)
        weakref.finalize(pair, died)
        return pair

    def died():
        nonlocal alive
        alive -= 1

    cached_pairs("k" * 64, counted, 60, folder=tmp_path, workers=2)
    assert most <= 8


def test_a_large_set_comes_from_the_cache_and_follows_its_content(tmp_path, monkeypatch):
    monkeypatch.setattr("fakd.data.pairs.cache_dir", lambda: tmp_path / "cache")
    for i in range(3):
        write_image(tmp_path / "set" / f"{i}.png", numbered(i).hr_img)
    images = image_set(tmp_path / "set")
    plain, cached = images.pairs(4), images.pairs(4, cache=True)
    assert all(np.array_equal(a.lr_img, b.lr_img) and a.name == b.name for a, b in zip(plain, cached, strict=True))
    write_image(tmp_path / "set" / "1.png", numbered(9).hr_img)
    assert images.pairs(4, cache=True)[1].hr_img[0, 0, 2] == 9
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 2


def test_a_flipped_bit_in_a_cache_is_seen_and_the_cache_built_anew(tmp_path):
    cache, draw = ImageCache("k" * 64, tmp_path), np.random.default_rng(0)
    truth = cached_pairs("k" * 64, numbered, 4, folder=tmp_path)[3].hr_img.copy()
    for name in ("pixels.u8", "index.json"):
        whole = (cache.dir / name).read_bytes()
        for place in draw.integers(len(whole) * 8, size=60):
            body = bytearray(whole)
            body[place // 8] ^= 1 << (place % 8)
            (cache.dir / name).write_bytes(body)
            assert not cache.complete
        (cache.dir / name).write_bytes(body)
        pairs = cached_pairs("k" * 64, numbered, 4, folder=tmp_path)
        assert cache.complete and np.array_equal(pairs[3].hr_img, truth)


def test_what_killed_builds_left_is_removed_after_a_day(tmp_path):
    old, new = (tmp_path / "images" / f".building-{name}" for name in ("old", "new"))
    for place in (old, new):
        place.mkdir(parents=True)
        (place / "pixels.u8").write_bytes(b"half")
    for path in (old, old / "pixels.u8"):
        os.utime(path, (0, 0))
    cached_pairs("k" * 64, numbered, 2, folder=tmp_path)
    assert not old.exists() and new.exists()
