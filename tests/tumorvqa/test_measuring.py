"""Measurements against shapes whose truth is known, and the fixed behaviour of each edge case."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from tests.tumorvqa.cases import HU, body, ellipsoid, frame, scan
from tests.tumorvqa.test_readers import MEASURED_ON_THE_SHARED_CT
from tumorvqa.measurements import Measurements
from tumorvqa.measuring import contact, diameter, gaps, measure, surface, values
from tumorvqa.measuring.lesions import components
from tumorvqa.readers import case_files, read_case
from tumorvqa.scans import Frame, Region

SPHERE = (10, 10, 10)
BIG = (30, 26, 20)


def within_two(found) -> float:
    """Share of (value, truth, uncertainty) with |value - truth| <= 2 uncertainty."""
    value, truth, uncertainty = np.array(found).T
    return float(np.mean(np.abs(value - truth) <= 2 * uncertainty))


def random_spacing(random, low=0.8, high=5.0):
    plane = random.uniform(low, high)
    return np.array([plane, plane, random.uniform(low, high)])


def grid(random, spacing, reach):
    """A frame that holds ±reach around a random middle, and the millimetres of its voxels from there."""
    shape = tuple((np.ceil(2 * np.asarray(reach) / spacing).astype(int) + 6).tolist())
    middle = (np.array(shape) - 1) / 2 * spacing + random.uniform(-0.5, 0.5, 3) * spacing
    mm = np.moveaxis(np.indices(shape), 0, -1) * spacing - middle
    return Frame(np.diag([*spacing, 1.0]), shape), mm, middle


def lesions_of(masks, **options):
    return measure(scan(masks, **options)).lesions


def test_errors_of_volume_diameters_and_slice_are_within_two_uncertainties_in_95_percent_of_ellipsoids():
    random, found = np.random.default_rng(0), {"volume": [], "long": [], "short": [], "slice": []}
    for _ in range(250):
        axes = np.exp(random.uniform(np.log(4), np.log(22))) * np.exp(random.uniform(-0.5, 0.5, 3))
        turn = Rotation.random(random_state=int(random.integers(1 << 30))).as_matrix()
        form = turn @ np.diag(axes**-2.0) @ turn.T
        where, mm, middle = grid(random, random_spacing(random), np.sqrt(np.diag(np.linalg.inv(form))))
        region = Region.of(np.einsum("...i,ij,...j", mm, form, mm) <= 1)
        if region.count < 4:
            continue
        volume = values.volume(region.mask, where.voxel_mm3)
        long, long_error, short, short_error, at, at_error = diameter.axes(region, where)
        # Parallel sections of an ellipsoid are alike, so the widest is that through its middle
        wide, narrow = 2 / np.sqrt(np.linalg.eigvalsh(form[:2, :2]))
        found["volume"].append((volume.value, 4 / 3 * np.pi * axes.prod() / 1000, volume.uncertainty))
        found["long"].append((long, wide, long_error))
        found["short"].append((short, narrow, short_error))
        found["slice"].append((at, middle[2] / where.spacing[2], at_error))
    assert {name: within_two(rows) > 0.94 for name, rows in found.items()} == dict.fromkeys(found, True)
    for rows in found.values():  # and not by errors that say nothing
        value, truth, uncertainty = np.array(rows).T
        assert np.sqrt(np.mean(((value - truth) / uncertainty) ** 2)) > 0.6


def test_the_error_of_a_tubes_volume_is_within_two_uncertainties_also_along_an_axis():
    """Where every slice errs in the same way."""
    for way in np.array([(0, 0, 1), (0, 0.05, 0.9987), (0.4, 0.6, 0.6928)]):
        random, found = np.random.default_rng(2), []
        for _ in range(100):
            radius, length = random.uniform(3, 12), random.uniform(40, 100)
            where, mm, _ = grid(random, random_spacing(random, high=4.0), radius + np.abs(way) * length / 2)
            along = np.clip(mm @ way, -length / 2, length / 2)
            mask = np.linalg.norm(mm - along[..., None] * way, axis=-1) <= radius
            volume = values.volume(mask, where.voxel_mm3)
            found.append((volume.value, np.pi * radius**2 * (length + 4 / 3 * radius) / 1000, volume.uncertainty))
        assert within_two(found) > 0.9


def test_a_small_gap_is_right_within_two_uncertainties_in_95_percent_of_spheres():
    random, found = np.random.default_rng(1), []
    for _ in range(120):
        small, large, gap = random.uniform(4, 12), random.uniform(8, 25), random.uniform(0, 10)
        way = random.normal(size=3)
        way /= np.linalg.norm(way)
        where, mm, _ = grid(random, random_spacing(random, high=3.0), [small + gap + 12] * 3)
        lesion = Region.of(np.linalg.norm(mm, axis=-1) <= small)
        organ = Region.of(np.linalg.norm(mm - way * (small + gap + large), axis=-1) <= large)
        row = gaps.gaps(lesion, {"spleen": organ}, where)["spleen"]
        found.append((row.value, gap, row.uncertainty))
    assert within_two(found) > 0.94
    assert abs(np.mean([value - truth for value, truth, _ in found])) < 0.3


@pytest.mark.parametrize("along", range(3))
def test_the_contact_angle_of_a_ball_on_a_straight_vessel_is_right_within_two_uncertainties(along):
    """Ball of radius R at d from the axis of a vessel of radius r: 2 acos((d^2 + r^2 - R^2) / 2 d r)."""
    random, found = np.random.default_rng(along), []
    others = [axis for axis in range(3) if axis != along]
    for _ in range(80):
        ball, angle, turn = random.uniform(8, 16), random.uniform(20, 300), random.uniform(0, 2 * np.pi)
        half = 4 * np.cos(np.radians(angle / 2))
        away = half + np.sqrt(half**2 - 16 + ball**2)
        where, mm, _ = grid(random, np.full(3, 2.5), [ball + 12] * 3)
        vessel = np.linalg.norm(mm[..., others], axis=-1) <= 4
        middle = np.zeros(3)
        middle[others] = away * np.cos(turn), away * np.sin(turn)
        lesion = (np.linalg.norm(mm - middle, axis=-1) <= ball) & ~vessel
        row = contact.contact(Region.of(lesion), Region.of(vessel), where)
        found.append((row.value, angle, row.uncertainty))
    assert within_two(found) > 0.92
    assert abs(np.mean([value - truth for value, truth, _ in found])) < 6


def test_an_oblique_vessel_is_as_covered_as_an_upright_one():
    """A slice cuts it in an ellipse, whose parameter is the angle around the vessel's axis."""
    random, found = np.random.default_rng(5), []
    for _ in range(40):
        way = np.array([random.uniform(-0.5, 0.5), random.uniform(-0.5, 0.5), 1.0])
        way /= np.linalg.norm(way)
        side = np.cross(way, random.normal(size=3))
        side /= np.linalg.norm(side)
        angle = random.uniform(60, 240)
        half = 6 * np.cos(np.radians(angle / 2))
        where, mm, _ = grid(random, np.array([1.5, 1.5, 2.0]), [26] * 3)
        vessel = np.linalg.norm(mm - (mm @ way)[..., None] * way, axis=-1) <= 6
        lesion = np.linalg.norm(mm - side * (half + np.sqrt(half**2 - 36 + 144)), axis=-1) <= 12
        row = contact.contact(Region.of(lesion & ~vessel), Region.of(vessel), where)
        found.append((row.value, angle, row.uncertainty))
    assert within_two(found) > 0.9 and abs(np.mean([value - truth for value, truth, _ in found])) < 6


def test_a_lesion_more_than_a_voxel_from_a_vessel_has_no_contact_and_no_doubt():
    vessel, lesion = np.zeros((2, 20, 20, 20), bool)
    vessel[4:8, 4:8] = True
    lesion[9:14, 4:8, 5:12] = True
    where = frame(vessel.shape)
    assert contact.contact(Region.of(lesion), Region.of(vessel), where).method != "not adjacent"
    far = contact.contact(Region.of(np.roll(lesion, 1, axis=0)), Region.of(vessel), where)
    assert (far.value, far.uncertainty) == (0.0, 0.0)


def test_a_lesion_around_a_vessel_covers_all_of_it():
    where, mm, _ = grid(np.random.default_rng(0), np.full(3, 2.0), [24] * 3)
    vessel = np.linalg.norm(mm[..., :2], axis=-1) <= 5
    lesion = (np.linalg.norm(mm, axis=-1) <= 15) & ~vessel
    assert contact.contact(Region.of(lesion), Region.of(vessel), where).value == 360


def test_a_lesion_in_a_vessels_mask_has_all_of_it_around_in_doubt():
    vessel, lesion = np.zeros((2, 20, 20, 20), bool)
    vessel[4:16, 4:16] = True
    lesion[7:11, 7:11, 7:11] = True
    found = contact.contact(Region.of(lesion), Region.of(vessel), frame(vessel.shape))
    assert (found.value, found.uncertainty, found.status) == (360.0, 90.0, "ok")


@pytest.mark.parametrize("axis", range(3))
def test_a_lesion_at_the_scans_end_does_not_touch_an_organ_across_it(axis):
    """A lesion in the last two layers, a kidney up to two below it; voxels are shortest across the end."""
    lesion, kidney = np.zeros((2, 20, 20, 20), bool)
    lesion[9:12, 9:12, 18:] = True
    kidney[6:15, 6:15, 8:17] = True
    lesion, kidney = np.moveaxis(lesion, 2, axis), np.moveaxis(kidney, 2, axis)
    where = frame(lesion.shape, tuple(3.0 if k == axis else 4.0 for k in range(3)))
    apart = measure(scan({"kidney_left": kidney, "kidney_tumor": lesion}, where=where))
    assert apart.organs["kidney_left"].volume.value == pytest.approx(kidney.sum() * 48 / 1000)
    touching = measure(scan({"kidney_left": np.roll(kidney, 1, axis), "kidney_tumor": lesion}, where=where))
    assert touching.organs["kidney_left"].volume.value == pytest.approx((kidney.sum() + lesion.sum()) * 48 / 1000)


def test_hu_of_blurred_noisy_ellipsoids_are_right_within_two_uncertainties_in_95_percent():
    random, found = np.random.default_rng(3), []
    for _ in range(120):
        axes = np.exp(random.uniform(np.log(4), np.log(20))) * np.exp(random.uniform(-0.4, 0.4, 3))
        spacing = random_spacing(random, high=3.0)
        where, mm, _ = grid(random, spacing, axes + 6)
        tissue, around = random.uniform(-20, 150, 2)
        shares = [((mm + (np.array(step) - 1) / 3 * spacing) / axes) for step in np.ndindex(3, 3, 3)]
        share = np.mean([(part**2).sum(axis=-1) <= 1 for part in shares], axis=0)
        noise = ndimage.gaussian_filter(random.normal(size=where.shape), random.uniform(0.3, 1.5) / spacing)
        hu = ndimage.gaussian_filter(around + (tissue - around) * share, random.uniform(0.3, 1.2) / spacing)
        mask = ((mm / axes) ** 2).sum(axis=-1) <= 1
        if mask.sum() >= values.FEW:
            row = values.hounsfield(np.rint(hu + 12 * noise / noise.std()).astype(np.int16), mask).mean
            found.append((row.value, tissue, row.uncertainty))
    assert within_two(found) > 0.94


def test_organs_of_the_shared_ct_have_the_reference_values(shared):
    files = case_files(shared / "ct" / "example_ct.nii.gz", shared / "ct" / "example_seg_fast_force_split.nii.gz")
    measured = measure(read_case(files))
    for name, (volume, hu) in MEASURED_ON_THE_SHARED_CT.items():
        organ = measured.organs[name]
        assert (organ.volume.value, organ.hu.value) == pytest.approx((volume, hu), abs=0.05)
    cut = {name for name, organ in measured.organs.items() if organ.volume.status == "truncated"}
    assert {"spleen", "liver", "stomach", "aorta"} <= cut and not {"kidney_left", "pancreas", "bladder"} & cut
    assert measured.organs["liver"].faces == ("superior",) and measured.organs["esophagus"].volume.status == "empty"
    assert measured.lesions == () and measured.annotated == ("kidney_cyst",)


def test_a_case_of_noise_has_the_hu_it_was_drawn_with_and_survives_json():
    hu, masks = body()
    measured = measure(scan(masks, hu))
    for name, truth in HU.items():
        row = measured.organs[name].hu if name in measured.organs else measured.lesions[0].hu
        assert abs(row.value - truth) < 3 * row.uncertainty
        assert row.uncertainty < 3
    assert msgspec.json.decode(msgspec.json.encode(measured), type=Measurements) == measured


def test_volume_is_the_determinant_where_a_frame_is_sheared():
    """Gantry tilt: the product of spacings is too large."""
    shear = frame((12, 12, 12), (1.0, 1.0, 2.0)).affine @ (np.eye(4) + 1.5 * np.eye(4, k=2) * [1, 1, 1, 0])
    mask = np.zeros((12, 12, 12), bool)
    mask[3:8, 3:8, 3:8] = True
    where = Frame(shear, mask.shape)
    organ = measure(scan({"liver": mask}, where=where)).organs["liver"]
    assert organ.volume.value == pytest.approx(125 * 2.0 / 1000) and np.prod(where.spacing) > 2.4


def test_hu_of_an_organ_leave_its_lesions_out_and_its_volume_does_not():
    hu, masks = body()
    measured = measure(scan(masks, hu))
    apart = masks | {"liver": masks["liver"] & ~masks["liver_tumor"]}  # as a label map must say it
    assert measure(scan(apart, hu)).organs["liver"] == measured.organs["liver"]
    liver = measured.organs["liver"]
    tissue = hu[masks["liver"] & ~masks["liver_tumor"]]
    assert (liver.hu.value, liver.hu_sd.value) == pytest.approx((tissue.mean(), tissue.std()))
    assert liver.hu_median.value == np.median(tissue)
    assert liver.volume.value == pytest.approx(masks["liver"].sum() * 36 / 1000)


def test_masks_that_are_empty_small_or_absent_are_said_to_be():
    hu, masks = body()
    few = np.zeros_like(masks["liver"])
    few[5, 5, 5:11] = True
    organs = measure(scan({"spleen": few, "liver": np.zeros_like(few)}, hu)).organs
    assert organs["liver"].volume == replace(organs["liver"].volume, value=None, status="empty")
    assert organs["spleen"].volume.status == "ok" and organs["spleen"].hu.status == "too_small"
    assert organs["spleen"].hu.value is None and "pancreas" not in organs


@pytest.mark.parametrize("axis, names", list(enumerate(surface.SIDES)))
def test_the_side_of_the_scan_that_cuts_an_organ_is_named(axis, names):
    for end, name in zip((0, -1), names, strict=True):
        mask = np.zeros((9, 9, 9), bool)
        mask[3:6, 3:6, 3:6] = True
        np.moveaxis(mask, axis, 0)[end, 4, 4] = True
        organ = measure(scan({"liver": mask})).organs["liver"]
        assert organ.faces == (name,) and organ.volume.status == "truncated" and organ.fragments == 2


def test_components_touch_at_corners_and_lesions_that_touch_are_one():
    mask = np.zeros((20, 20, 20), bool)
    mask[2:6, 2:6, 2:6] = mask[6:9, 6:9, 6:9] = mask[12:15, 12:15, 12:15] = True
    sizes = [part.region.count for part in components(scan({"liver_tumor": mask}), "liver")]
    assert sizes == [64 + 27, 27] and ndimage.label(mask)[1] == 3


def test_specks_and_threads_are_not_kept():
    """Less than 10 mm^3, or thinner than 3 mm."""
    mask = np.zeros((40, 20, 20), bool)
    mask[2:4, 2:4, 2:4] = True  # 8 mm^3
    mask[8:12, 2:6, 2:6] = True
    mask[20:40, 2:4, 2:4] = True  # 20 x 2 x 2 mm
    where = frame(mask.shape, (1.0, 1.0, 1.0))
    (lesion,) = lesions_of({"liver_tumor": mask}, where=where)
    assert lesion.volume.value == pytest.approx(0.064)
    coarse = frame(mask.shape, (4.0, 4.0, 4.0))
    assert len(lesions_of({"liver_tumor": mask}, where=coarse)) == 3


def test_a_typed_lesion_wins_over_the_generic_one_that_covers_it():
    tumor, cyst, other = (ellipsoid(c, SPHERE, BIG) for c in ((-25, 0, 0), (25, 0, 0), (0, 22, 10)))
    masks = {"liver_tumor": tumor, "liver_cyst": cyst, "liver_lesion": tumor | cyst | other}
    found = lesions_of(masks)
    assert sorted(lesion.kind for lesion in found) == ["cyst", "lesion", "tumor"]
    assert sorted(lesion.rank for lesion in found) == [1, 2, 3]
    # A typed mask over a third of a generic lesion takes its voxels and leaves the rest
    third = tumor & (np.arange(BIG[0]) < 6)[:, None, None]
    found = lesions_of({"liver_tumor": third, "liver_lesion": tumor})
    assert {lesion.kind for lesion in found} == {"tumor", "lesion"}
    assert sum(lesion.volume.value for lesion in found) == pytest.approx(tumor.sum() * 36 / 1000)


def test_a_voxel_of_two_typed_lesions_counts_once():
    """As the first of tumor and cyst; what is left of the other may be two pieces."""
    tumor, cyst = np.zeros((2, 30, 20, 20), bool)
    cyst[4:26, 6:12, 6:12] = True
    tumor[12:18, 4:14, 4:14] = True
    found = components(scan({"liver_cyst": cyst, "liver_tumor": tumor}), "liver")
    assert [part.kind for part in found] == ["tumor", "cyst", "cyst"]
    assert [part.region.count for part in found] == [600, 8 * 36, 8 * 36]
    assert sum(part.region.count for part in found) == (tumor | cyst).sum()
    # The same voxels twice are one lesion
    assert [part.kind for part in components(scan({"liver_cyst": cyst, "liver_tumor": cyst}), "liver")] == ["tumor"]


def test_a_generic_lesion_that_a_typed_one_cuts_in_two_is_two():
    tumor, generic = np.zeros((2, 30, 20, 20), bool)
    generic[2:28, 6:12, 6:12] = True
    tumor[12:16, 4:14, 4:14] = True
    found = components(scan({"liver_lesion": generic, "liver_tumor": tumor}), "liver")
    assert [(part.kind, part.region.count) for part in found] == [
        ("tumor", 400),
        ("lesion", 10 * 36),
        ("lesion", 12 * 36),
    ]


def test_the_rank_is_by_volume_over_all_kinds_of_an_organ():
    tumor, cyst = ellipsoid((-20, 0, 0), (8, 8, 8), BIG), ellipsoid((20, 0, 0), (14, 10, 10), BIG)
    found = {lesion.kind: lesion.rank for lesion in lesions_of({"liver_tumor": tumor, "liver_cyst": cyst})}
    assert found == {"cyst": 1, "tumor": 2}


def test_nothing_annotated_is_not_nothing_there():
    hu, masks = body()
    unknown = measure(scan({"liver": masks["liver"]}, hu))
    none = measure(scan({"liver": masks["liver"], "liver_tumor": np.zeros_like(masks["liver"])}, hu))
    assert unknown.lesions == none.lesions == ()
    assert unknown.annotated == () and none.annotated == ("liver_tumor",)


def one(mask, where):
    return diameter.axes(Region.of(mask), where)


def test_the_long_axis_equals_the_farthest_pair_of_centres_and_half_a_voxel():
    random = np.random.default_rng(0)
    for _ in range(20):
        mask = np.zeros((14, 14, 1), bool)
        mask[2:12, 2:12, 0] = random.random((10, 10)) < 0.2
        spacing = random.uniform(0.5, 3, 3)
        where = frame(mask.shape, spacing)
        points = np.argwhere(mask[..., 0]) * spacing[:2]
        longest = pdist(points).max()
        assert longest < one(mask, where).long <= longest + np.linalg.norm(spacing[:2]) / 2 + 1e-6


def test_a_voxel_a_line_and_a_slice_have_axes():
    where = frame((9, 9, 9), (2.0, 2.0, 5.0))
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = True
    axes = one(mask, where)
    assert (axes.long, axes.short, axes.slice) == (1.0, 1.0, 4)
    mask[2:7, 4, 4] = True  # five in a row: 8 mm between the outer centres
    axes = one(mask, where)
    assert (axes.long, axes.short) == (pytest.approx(9.0), pytest.approx(1.0))
    mask[:] = False
    mask[[2, 3, 4], [2, 3, 4], 4] = True  # on a diagonal
    assert one(mask, where).long == pytest.approx(4 * np.sqrt(2) + np.sqrt(2))


def test_of_equal_slices_the_lowest_is_taken():
    mask = np.zeros((9, 9, 9), bool)
    mask[2:7, 4, 3:6] = True
    axes = one(mask, frame((9, 9, 9)))
    assert axes.slice == 3 and axes.slice_error > 0.5


def test_the_axes_of_a_sheared_slice_are_those_of_its_columns():
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[0, 1] = 1.5
    mask = np.zeros((12, 12, 1), bool)
    mask[3:9, 3:9, 0] = True
    far = affine[:2, :2] @ [5, 5]
    assert one(mask, Frame(affine, mask.shape)).long == pytest.approx(np.linalg.norm(far), abs=2.5)


def test_a_lesion_lies_in_the_parts_that_hold_its_voxels():
    lesion = ellipsoid((0, 0, 0), SPHERE, BIG)
    left = np.zeros(BIG, bool)
    left[:14] = True
    masks = {"liver_tumor": lesion, "liver_segment_4": left, "liver_segment_8": ~left}
    (found,) = lesions_of(masks)
    shares = {name: (lesion & masks[name]).sum() / lesion.sum() for name in ("liver_segment_4", "liver_segment_8")}
    assert found.places == pytest.approx(shares) and sum(shares.values()) == pytest.approx(1)
    # The same where a label map gives the lesion's voxels to no part
    (found,) = lesions_of({name: mask & ~lesion for name, mask in masks.items()} | {"liver_tumor": lesion})
    assert set(found.places) == set(shares) and sum(found.places.values()) == pytest.approx(1)


def test_a_lesion_outside_its_organ_is_kept_and_belongs_to_the_nearest_kidney():
    kidneys = {
        side: ellipsoid((x, 0, 0), (12, 12, 20), BIG) for side, x in (("kidney_left", -25), ("kidney_right", 25))
    }
    lesion = ellipsoid((2, -24, 0), (5, 5, 5), BIG)
    measured = measure(scan(kidneys | {"kidney_tumor": lesion}))
    assert measured.lesions[0].places == {"kidney_right": 1.0} and measured.lesions[0].gaps == {}
    assert measured.organs["kidney_right"].volume.value == pytest.approx(kidneys["kidney_right"].sum() * 36 / 1000)
    # One at a kidney's rim is part of it
    rim = ellipsoid((36, 0, 0), (6, 6, 6), BIG)
    measured = measure(scan(kidneys | {"kidney_cyst": rim}))
    assert measured.lesions[0].places == {"kidney_right": 1.0}
    whole = (kidneys["kidney_right"] | rim).sum() * 36 / 1000
    assert measured.organs["kidney_right"].volume.value == pytest.approx(whole)
    assert measured.organs["kidney_left"].volume.value == pytest.approx(kidneys["kidney_left"].sum() * 36 / 1000)


def test_gaps_are_zero_for_neighbours_and_not_given_beyond_20_mm_or_of_the_host():
    lesion, organ = np.zeros((2, 30, 12, 12), bool)
    lesion[5:9, 4:8, 4:8] = True
    masks = {"liver": lesion, "liver_tumor": lesion}
    for first, gap in ((9, 0.0), (10, 4.5), (13, 13.5), (17, None)):
        organ[:] = False
        organ[first : first + 3, 4:8, 4:8] = True
        (found,) = lesions_of({**masks, "spleen": organ}, where=frame(lesion.shape, (3.0, 3.0, 3.0)))
        assert set(found.gaps) == ({"spleen"} if gap is not None else set())
        assert gap is None or found.gaps["spleen"].value == pytest.approx(gap)


def test_organs_that_overlap_are_measured_each_with_its_own_mask():
    one_mask, two = ellipsoid((-5, 0, 0), BIG, BIG), ellipsoid((5, 0, 0), BIG, BIG)
    organs = measure(scan({"liver": one_mask, "stomach": two})).organs
    assert organs["liver"].volume.value == pytest.approx(one_mask.sum() * 36 / 1000)
    assert organs["stomach"].volume.value == pytest.approx(two.sum() * 36 / 1000) and (one_mask & two).any()


def test_a_lesion_that_the_scan_cuts_is_truncated():
    mask = ellipsoid((0, 0, 38), SPHERE, BIG)
    (found,) = lesions_of({"liver_tumor": mask})
    assert {found.volume.status, found.long_axis.status, found.short_axis.status} == {"truncated"}
    assert found.volume.value == pytest.approx(mask.sum() * 36 / 1000)
