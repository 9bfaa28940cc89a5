"""Masks of worse origin: perturbed ones and those of thresholds alone."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tumorvqa.baselines.perturb import perturb
from tumorvqa.baselines.threshold import segment
from tumorvqa.measuring.surface import slices
from tumorvqa.phantoms.draw import draw_all
from tumorvqa.phantoms.insert import insert_lesion, room
from tumorvqa.phantoms.render import render
from tumorvqa.scans import EMPTY, Region, Scan
from tumorvqa.structures import MEASURED


@pytest.fixture(scope="module")
def scans() -> list[Scan]:
    return [render(phantom) for phantom in draw_all(3, 11)]


def whole(region: Region, scan: Scan) -> NDArray[np.bool_]:
    mask = np.zeros(scan.frame.shape, bool)
    mask[slices(region.box)] = region.mask
    return mask


def dice(a: Scan, b: Scan, name: str) -> float:
    one, other = (whole(scan.regions.get(name, EMPTY), scan) for scan in (a, b))
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def same(a: Scan, b: Scan) -> bool:
    return a.regions.keys() == b.regions.keys() and all(
        a.regions[name].box == b.regions[name].box and (a.regions[name].mask == b.regions[name].mask).all()
        for name in a.regions
    )


def test_strength_zero_changes_no_mask(scans):
    assert same(perturb(scans[0], 1, 0.0), scans[0])


def test_a_seed_and_a_case_give_one_result_whatever_else_is_annotated(scans):
    once = perturb(scans[0], 1)
    assert same(once, perturb(scans[0], 1))
    assert not same(once, perturb(scans[0], 2))
    assert not same(once, perturb(replace(scans[0], case="another"), 1))
    alone = perturb(replace(scans[0], regions={"liver": scans[0].regions["liver"]}), 1)
    assert (alone.regions["liver"].mask == once.regions["liver"].mask).all()


def test_masks_get_worse_with_strength_and_no_ct_changes(scans):
    organs = [replace(scan, regions={name: scan.regions[name] for name in MEASURED}) for scan in scans[:1]]
    scores = [
        np.mean([dice(scan, perturb(scan, 0, strength), name) for scan in organs for name in MEASURED])
        for strength in (0.5, 1.0, 2.0)
    ]
    assert 0.998 > scores[0] > scores[1] > scores[2] > 0.3
    assert scores[1] > 0.85
    changed = perturb(scans[0], 0)
    assert (changed.hu == scans[0].hu).all() and changed.provenance == "ai"
    assert changed.regions.keys() == scans[0].regions.keys()


def test_small_lesions_are_missed_more_often_than_large_ones(scans):
    mask = np.zeros(scans[0].frame.shape, bool)
    small, large = np.zeros_like(mask), np.zeros_like(mask)
    for i in range(4):
        small[20 + 20 * i : 23 + 20 * i, 50:53, 40:43] = True
        large[20 + 20 * i : 30 + 20 * i, 70:80, 40:50] = True
    scan = replace(scans[0], regions={"liver_lesion": Region.of(small | large)})
    kept_small = kept_large = 0
    for seed in range(12):
        after = whole(perturb(scan, seed).regions["liver_lesion"], scan)
        for i in range(4):
            kept_small += after[15 + 20 * i : 29 + 20 * i, 45:58, 36:47].any()
            kept_large += after[15 + 20 * i : 34 + 20 * i, 66:84, 36:54].any()
    assert kept_large == 48
    assert 0.3 * 48 < kept_small < 0.75 * 48


def test_a_negative_strength_is_refused(scans):
    with pytest.raises(ValueError, match="strength -1"):
        perturb(scans[0], 0, -1)


def test_thresholds_find_the_organs_of_phantoms(scans):
    found = [segment(scan) for scan in scans]
    assert np.mean([dice(a, b, name) for a, b in zip(scans, found, strict=True) for name in ("liver", "spleen")]) > 0.9
    assert (
        np.mean([dice(a, b, f"kidney_{s}") for a, b in zip(scans, found, strict=True) for s in ("left", "right")]) > 0.7
    )
    assert "pancreas" not in found[0].regions


def test_thresholds_do_not_look_at_masks(scans):
    assert same(segment(scans[0]), segment(replace(scans[0], regions={})))


def test_a_scan_without_tissue_has_no_organs(scans):
    for value in (-1000, 0):
        empty = replace(scans[0], hu=np.full_like(scans[0].hu, value))
        assert not {"spleen", "kidney_left"} & segment(empty).regions.keys()
    assert segment(replace(scans[0], hu=np.full_like(scans[0].hu, -1000))).regions == {}


def test_a_dark_lesion_inside_an_organ_is_seen(scans):
    middle, radius = room(scans[0], "liver")
    scan = insert_lesion(scans[0], "liver", middle, min(radius, 16.0), -40.0, "cyst")
    ball = whole(scan.regions["liver_cyst"], scan) & ~whole(scans[0].regions["liver_cyst"], scan)
    before, after = (whole(segment(s).regions["liver_lesion"], s) for s in (scans[0], scan))
    assert (after & ball).sum() > 0.5 * ball.sum()
    assert (before & ball).sum() == 0
