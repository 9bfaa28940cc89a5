"""Phantoms: shapes against counting, masks against formulas, draws against what they promise, files, insertion."""

import math
from collections import Counter
from dataclasses import replace

import cc3d
import msgspec
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from tumorvqa.measurements import Measurements
from tumorvqa.measuring.surface import slices
from tumorvqa.phantoms.anatomy import Plan, Wanted, build
from tumorvqa.phantoms.draw import draw, draw_all, plans
from tumorvqa.phantoms.insert import coverage, insert_lesion, room
from tumorvqa.phantoms.phantom import Phantom, contact
from tumorvqa.phantoms.render import render
from tumorvqa.phantoms.shapes import Ellipsoid, Tube, gap, lattice
from tumorvqa.phantoms.truth import truth
from tumorvqa.phantoms.write import write, write_scan
from tumorvqa.readers import find_cases, read_case
from tumorvqa.scans import EMPTY, Frame, Meta, Region, Scan
from tumorvqa.structures import HOSTS, KINDS, MEASURED, PLACES

COUNT, SEED = 7, 3
TILTED = Ellipsoid((3.0, -2.0, 1.0), (20.0, 11.0, 7.0), 0.6)
BENT = Tube(((0.0, 0.0, 0.0), (38.0, 9.0, 7.0), (70.0, 25.0, -10.0), (110.0, 20.0, -5.0)), 9.0)
ANNOTATED = tuple(f"{organ}_{kind}" for organ, kinds in KINDS.items() for kind in kinds)
VOLUMES = {"liver": 1500.0, "spleen": 250.0, "pancreas": 80.0, "kidney_left": 150.0, "kidney_right": 160.0}


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return draw_all(COUNT, SEED)


@pytest.fixture(scope="module")
def scans(phantoms) -> list[Scan]:
    return [render(phantom) for phantom in phantoms]


@pytest.fixture(scope="module")
def truths(phantoms) -> list[Measurements]:
    return [truth(phantom) for phantom in phantoms]


def whole(scan: Scan, name: str) -> NDArray[np.bool_]:
    mask = np.zeros(scan.frame.shape, bool)
    mask[slices(scan.regions[name].box)] = scan.regions[name].mask
    return mask


def planned(lesions: dict[str, tuple[Wanted, ...]], **changes: object) -> Phantom:
    hu = plans(1, 0)[0].hu
    plan = Plan("one", "someone", 5, 6, Meta(contrast="plain"), VOLUMES, hu, lesions=lesions, annotated=ANNOTATED)
    return build(replace(plan, **changes))


def counted(solid: Ellipsoid | Tube, step: float) -> float:
    return len(lattice(solid, step)) * step**3


@pytest.mark.parametrize("solid", [TILTED, BENT], ids=["ellipsoid", "tube"])
def test_volume_in_closed_form_equals_that_of_counted_points(solid):
    assert solid.volume == pytest.approx(counted(solid, 0.4), rel=2e-3)


@pytest.mark.parametrize("span", [0, 1, 2])
def test_volume_of_a_piece_of_a_tube_equals_that_of_counted_points(span):
    points = lattice(BENT, 0.4)
    there = np.count_nonzero(BENT.span_of(*points.T) == span)
    assert BENT.span_volume(span) == pytest.approx(there * 0.4**3, rel=3e-3)


def test_segments_divide_the_liver_and_their_volumes_are_those_of_counted_points(phantoms):
    phantom = phantoms[0]
    points = lattice(phantom.liver, 1.7)
    names = [np.flatnonzero(phantom.part(name, *points.T)) for name in PLACES["liver"]]
    assert sorted(np.concatenate(names)) == list(range(len(points)))
    volumes = [phantom.segments[name].volume for name in PLACES["liver"]]
    assert sum(volumes) == pytest.approx(phantom.liver.volume, rel=1e-3)
    assert volumes == pytest.approx([len(name) * 1.7**3 for name in names], rel=5e-3)


def test_distance_to_an_ellipsoid_equals_a_numeric_minimum():
    points = np.random.default_rng(0).uniform(-60, 60, (12, 3))

    def away(angles, point):
        a, b = angles
        unit = np.array([[math.sin(a) * math.cos(b), math.sin(a) * math.sin(b), math.cos(a)]])
        return math.dist(TILTED.at(unit)[0], point)

    starts = [(a, b) for a in (0.5, 1.5, 2.5) for b in (0.0, 2.0, 4.0)]
    nearest = [
        min(minimize(away, start, (point,), method="Nelder-Mead", options={"xatol": 1e-6}).fun for start in starts)
        for point in points
    ]
    outside = ~TILTED.inside(*points.T)
    assert TILTED.distance(points) == pytest.approx(np.where(outside, nearest, 0), abs=1e-3)


def test_gap_of_two_balls_is_that_of_their_centres_less_both_radii():
    one, other = Ellipsoid((0.0, 0.0, 0.0), (5.0,) * 3), Ellipsoid((3.0, 4.0, 12.0), (2.0,) * 3)
    assert gap(one, other) == pytest.approx(13 - 7)
    line = Tube(((20.0, -50.0, 0.0), (20.0, 50.0, 0.0)), 3.0)
    assert gap(line, one) == pytest.approx(20 - 8)
    assert gap(one, line) == pytest.approx(20 - 8)


@pytest.mark.parametrize(("radius", "away"), [(8.0, 9.0), (12.0, 6.0), (10.0, 13.0), (20.0, 3.0), (4.0, 20.0)])
def test_contact_angle_equals_the_counted_share_of_the_rim(radius, away):
    vessel = Tube(((away, 0.0, -90.0), (away, 0.0, 90.0)), 4.5)
    rim = np.linspace(0, 2 * np.pi, 36000, endpoint=False)
    inside = (away + 4.5 * np.cos(rim)) ** 2 + (4.5 * np.sin(rim)) ** 2 < radius**2
    assert contact(Ellipsoid((0.0, 0.0, 0.0), (radius,) * 3), vessel) == pytest.approx(360 * inside.mean(), abs=0.05)


def test_contact_of_what_is_no_ball_is_refused():
    with pytest.raises(ValueError, match="make the tumour a ball"):
        contact(TILTED, Tube(((3.0, -2.0, -50.0), (3.0, -2.0, 50.0)), 4.0))


def test_organs_do_not_overlap_and_hold_their_lesions(scans, phantoms):
    for scan, phantom in zip(scans, phantoms, strict=True):
        covered = sum(whole(scan, name).astype(int) for name in phantom.solids)
        assert covered.max() == 1
        for organ, hosts in HOSTS.items():
            organs = np.any([whole(scan, host) for host in hosts], axis=0)
            for kind in KINDS[organ]:
                if f"{organ}_{kind}" in scan.regions:
                    assert organs[whole(scan, f"{organ}_{kind}")].all()


def test_parts_divide_their_organs(scans):
    for scan in scans:
        for organ in ("liver", "pancreas"):
            assert (sum(whole(scan, part).astype(int) for part in PLACES[organ]) == whole(scan, organ)).all()


def test_volumes_of_masks_agree_with_the_truth(scans, truths):
    for scan, known in zip(scans, truths, strict=True):
        for name in (*MEASURED, *PLACES["liver"], *PLACES["pancreas"]):
            if (expected := known.organs[name].volume.value) is not None:
                counted = scan.regions[name].count * scan.frame.voxel_mm3 / 1000
                assert counted == pytest.approx(expected, rel=0.04 if "pancreas" in name else 0.015), name


def test_each_lesion_is_one_component_of_its_mask(scans, truths):
    for scan, known in zip(scans, truths, strict=True):
        for name in known.annotated:
            found = cc3d.connected_components(whole(scan, name).astype(np.uint8), connectivity=26, return_N=True)[1]
            organ, kind = name.split("_")
            assert found == sum((lesion.organ, lesion.kind) == (organ, kind) for lesion in known.lesions)


def test_lesions_agree_with_their_voxels(scans, truths):
    """Volume, centre, HU, long axis of the widest slice."""
    seen = 0
    for scan, known in zip(scans, truths, strict=True):
        for name in known.annotated:
            labels = cc3d.connected_components(whole(scan, name).astype(np.uint8), connectivity=26)
            of_kind = [lesion for lesion in known.lesions if f"{lesion.organ}_{lesion.kind}" == name]
            for lesion in of_kind:
                nearest = min(
                    range(1, labels.max() + 1),
                    key=lambda k: math.dist(center(scan, labels == k), lesion.centroid),
                )
                mask = labels == nearest
                assert math.dist(center(scan, mask), lesion.centroid) < 1
                expected = lesion.volume.value
                assert mask.sum() * scan.frame.voxel_mm3 / 1000 == pytest.approx(expected, rel=0.06, abs=0.15)
                assert scan.hu[mask].mean() == pytest.approx(lesion.hu.value, abs=0.5)
                low, high = np.flatnonzero(mask.any(axis=(0, 1)))[[0, -1]]
                assert low <= lesion.slice.value <= high
                assert abs(lesion.slice.value - (low + high) / 2) <= 1.5 or "pancreas" in name
                spots = np.argwhere(mask[:, :, int(lesion.slice.value)]) * scan.frame.spacing[:2]
                widest = np.linalg.norm(spots[:, None] - spots[None], axis=2).max()
                assert widest < lesion.long_axis.value < widest + 8
                seen += 1
    assert seen > 20


def center(scan: Scan, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    return scan.frame.affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + scan.frame.affine[:3, 3]


def test_hu_of_an_organ_without_its_lesions_are_those_of_the_phantom(scans, truths, phantoms):
    for scan, known, phantom in zip(scans, truths, phantoms, strict=True):
        for name in MEASURED:
            host = next((host for host, sides in HOSTS.items() if name in sides), "")
            tissue = whole(scan, name)
            for kind in KINDS.get(host, ()):
                if f"{host}_{kind}" in scan.regions:
                    tissue &= ~whole(scan, f"{host}_{kind}")
            assert scan.hu[tissue].mean() == pytest.approx(known.organs[name].hu.value, abs=0.1)
            assert scan.hu[tissue].std() == pytest.approx(phantom.noise, abs=0.1)


def test_noise_is_correlated_between_neighbours_and_air_is_empty(scans):
    hu = scans[0].hu.astype(float)
    block = hu[slices(tuple((a + 12, b - 12) for a, b in scans[0].regions["liver"].box))]
    block = block[8:-8, 8:-8, 8:-8] - block.mean()
    assert 0.1 < np.corrcoef(block[1:].ravel(), block[:-1].ravel())[0, 1] < 0.6
    assert hu[0, 0].mean() == pytest.approx(-1000, abs=10)


def test_a_plan_gets_what_it_asks_for():
    wanted = (
        Wanted("pdac", "pancreas_body", 30.0, long_mm=24.0, vessel="superior_mesenteric_artery", degrees=270.0),
        Wanted("cyst", "pancreas_tail", 5.0, long_mm=12.0),
    )
    phantom = planned(
        {
            "pancreas": wanted,
            "liver": (Wanted("tumor", "liver_segment_7", 80.0), Wanted("cyst", "liver_segment_2", 3.0, 0.5)),
        },
        caudate=0.9,
    )
    known = truth(phantom)
    pdac, cyst = (lesion for lesion in known.lesions if lesion.organ == "pancreas")
    assert pdac.contacts["superior_mesenteric_artery"].value == pytest.approx(270)
    assert pdac.contacts["celiac_artery"].value == cyst.contacts["superior_mesenteric_artery"].value == 0
    assert (pdac.places, cyst.places) == ({"pancreas_body": 1.0}, {"pancreas_tail": 1.0})
    assert cyst.long_axis.value == pytest.approx(12)
    assert [lesion.places for lesion in known.lesions if lesion.organ == "liver"] == [
        {"liver_segment_7": 1.0},
        {"liver_segment_2": 1.0},
    ]
    volume = {name: organ.volume.value for name, organ in known.organs.items()}
    assert volume["liver"] == pytest.approx(1500) and volume["spleen"] == pytest.approx(250)
    assert volume["pancreas"] > 80, "it grows by the tumour that leaves it"
    right = sum(volume[f"liver_segment_{k}"] for k in (5, 6, 7, 8))
    assert volume["liver_segment_1"] / right == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize(("first", "gap_mm"), [("liver", (2, 4)), ("kidney", (2, 400))])
def test_an_organ_is_moved_beside_a_lesion_unless_it_has_lesions_already(first, gap_mm):
    liver = Wanted("tumor", "liver_segment_7", 80.0, near="kidney_right")
    kidney = Wanted("cyst", "kidney_right", 3.0)
    order = (first, *(organ for organ in ("liver", "kidney", "pancreas") if organ != first))
    phantom = planned({"liver": (liver,), "kidney": (kidney,)}, burden=order)
    tumor, cyst = truth(phantom).lesions
    assert gap_mm[0] < tumor.gaps["kidney_right"].value < gap_mm[1]
    organ = phantom.solids["kidney_right"]
    assert organ.inside(*next(x for x in phantom.lesions if x.kind == "cyst").solid.surface(200).T).all()
    assert cyst.gaps["liver"].value > 0


def test_a_tumour_has_no_voxel_of_the_vessel_that_it_holds():
    tumor = Wanted("pdac", "pancreas_head", 30.0, long_mm=26.0, vessel="celiac_artery", degrees=260.0)
    scan = render(planned({"pancreas": (tumor,)}))
    assert not (whole(scan, "pancreas_pdac") & whole(scan, "celiac_artery")).any()
    assert scan.regions["pancreas_pdac"].count * scan.frame.voxel_mm3 < 4 / 3 * math.pi * 13**3 - 500


def test_a_truncated_scan_says_so_where_masks_touch_its_faces():
    phantom = planned({}, truncated=True)
    known, scan = truth(phantom), render(phantom)
    assert known.organs["liver"].volume.value is None and known.organs["spleen"].volume.status == "truncated"
    assert known.organs["kidney_left"].volume.status == "ok"
    for name, organ in known.organs.items():
        (_, _), (_, _), (low, high) = scan.regions[name].box
        touched = (("inferior",) if low == 0 else ()) + (("superior",) if high == scan.frame.shape[2] else ())
        assert organ.faces == touched, name


def test_a_mask_that_is_not_shipped_is_not_annotated():
    phantom = planned({}, annotated=("liver_tumor",))
    scan = render(phantom)
    assert "kidney_cyst" not in scan.regions and truth(phantom).annotated == ("liver_tumor",)
    assert scan.regions["liver_tumor"].count == 0


def test_a_small_organ_gets_fewer_lesions_and_one_without_room_is_refused():
    rows = tuple(Wanted("cyst", "liver_segment_4", 5.0) for _ in range(16))
    small = VOLUMES | {"liver": 520.0}
    phantom = planned({"liver": rows}, volumes=small)
    assert 4 < len(phantom.lesions) < 16
    with pytest.raises(ValueError, match="no room for the lesions of one"):
        planned({"liver": rows * 3}, volumes=small)


def test_one_index_and_seed_give_one_phantom():
    first, again = draw(5, 8), draw_all(6, 8)[5]
    assert first.lesions == again.lesions and first.solids == again.solids and first.hu == again.hu
    assert (render(first).hu == render(again).hu).all()
    assert plans(4, 1) == plans(9, 1)[:4]
    assert plans(4, 1) != plans(4, 2)


def test_a_second_scan_of_a_patient_has_the_same_body_in_another_contrast():
    rows = plans(16, 0)
    first, again = build(rows[14]), build(rows[15])
    assert first.patient == again.patient and first.case != again.case
    assert first.solids == again.solids
    assert [lesion.solid for lesion in first.lesions] == [lesion.solid for lesion in again.lesions]
    assert first.meta.contrast != again.meta.contrast and first.meta.age == again.meta.age
    assert len({row.patient for row in rows}) == 15


def test_classes_come_up_about_equally_often():
    """Of 96 plans: each class as often as its table says, within a shuffle of each deck."""
    rows = plans(96, 4)
    plain = [row for row in rows if row.meta.contrast == "plain"]
    assert len(plain) == pytest.approx(48, abs=5)
    spleens = Counter(sum(row.volumes["spleen"] > t for t in (314.5, 500, 800)) for row in rows)
    assert spleens[0] == pytest.approx(48, abs=4) and min(spleens.values()) >= 12
    for organ in ("liver", "kidney", "pancreas", "colon"):
        shown = [row for row in rows if any(name.startswith(organ) for name in row.annotated)]
        assert len(shown) == pytest.approx(90, abs=5)
        assert 0.4 < np.mean([bool(row.lesions[organ]) for row in shown]) < 0.7
        assert set(range(7)) == {len(row.lesions[organ]) for row in shown}
    for name, kind in (("kidney", "tumor"), ("kidney", "cyst"), ("pancreas", "pdac"), ("pancreas", "pnet")):
        assert sum(kind in {lesion.kind for lesion in row.lesions[name]} for row in rows) >= 16
    enlarged = [row.volumes["liver"] > 3000 for row in rows], [row.volumes["liver"] > 1800 for row in rows]
    assert 0.3 < np.mean(enlarged[0]) < 0.5 < np.mean(enlarged[1]) + 0.05
    assert all(abs(row.hu["liver"] / row.hu["spleen"] - 1) > 0.04 for row in plain)


def test_no_threshold_lies_within_a_measurement_error_of_a_value():
    limits = {"liver": (1800, 3000), "spleen": (314.5, 430.8, 500, 800), "pancreas": (83, 100)}
    limits |= dict.fromkeys(("kidney_left", "kidney_right"), (207.6, 260))
    del limits["spleen"]
    limits["spleen"] = (314.5, 500, 800)
    for row in plans(200, 5):
        for organ, edges in limits.items():
            assert all(abs(row.volumes[organ] / edge - 1) > 0.04 for edge in edges), organ


def test_no_organ_and_no_metadata_tell_of_another_organ():
    """Correlations over 600 plans are those of chance: below 0.2, five standard errors."""
    rows = [row for index, row in enumerate(plans(600, 6)) if index % 16 != 15]
    columns = np.array(
        [
            [
                *(len(row.lesions[organ]) for organ in ("liver", "kidney", "pancreas", "colon")),
                *(row.volumes[organ] for organ in ("liver", "spleen", "pancreas", "kidney_left")),
                row.caudate,
                row.meta.age,
                row.meta.sex == "male",
                row.meta.contrast == "plain",
                row.meta.scanner == "Cedar CT",
                row.truncated,
            ]
            for row in rows
        ],
        float,
    )
    found = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(found).max() < 0.2


def test_files_read_back_are_the_scan_whatever_way_they_are_turned(tmp_path, phantoms, scans):
    turned = set()
    for phantom, scan in list(zip(phantoms, scans, strict=True))[:2]:
        folder = write(phantom, tmp_path)
        ct = nibabel.load(folder / "ct.nii.gz")
        turned.add(nibabel.aff2axcodes(ct.affine))
        upright = nibabel.as_closest_canonical(ct)
        assert np.allclose(upright.affine, phantom.frame.affine, atol=1e-3)
        assert (np.asarray(upright.dataobj) == scan.hu).all() and ct.get_data_dtype() == np.int16
        assert {path.name for path in (folder / "segmentations").iterdir()} == {
            f"{name}.nii.gz" for name in scan.regions
        }
        for name in ("liver", "pancreas_head", scan.regions and phantom.annotated[0]):
            mask = nibabel.as_closest_canonical(nibabel.load(folder / "segmentations" / f"{name}.nii.gz"))
            assert (np.asarray(mask.dataobj).astype(bool) == whole(scan, name)).all()
        assert msgspec.json.decode((folder / "truth.json").read_bytes(), type=Measurements) == truth(phantom)
        assert msgspec.json.decode((folder / "meta.json").read_bytes())["patient"] == phantom.patient
    assert turned != {("R", "A", "S")}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write(phantoms[0], tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def synthetic(affine: NDArray[np.float64]) -> Scan:
    """A noisy block of liver with 40 HU."""
    hu = np.random.default_rng(0).normal(40, 10, (60, 56, 52)).round().astype(np.int16)
    mask = np.zeros(hu.shape, bool)
    mask[4:-4, 4:-4, 4:-4] = True
    return Scan("block", "someone", "test", Frame(affine, hu.shape), hu, {"liver": Region.of(mask)})


SHEARED = np.array([[1.5, 0.2, 0.0, -30.0], [0.0, -1.4, 0.5, 60.0], [0.1, 0.0, 2.0, 5.0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("affine", [np.diag([1.5, 1.5, 2.0, 1.0]), SHEARED], ids=["straight", "sheared"])
def test_an_inserted_lesion_has_its_volume_its_mean_and_the_noise_of_its_organ(affine):
    scan = synthetic(affine)
    middle = affine[:3, :3] @ np.array([30, 28, 26]) + affine[:3, 3]
    after = insert_lesion(scan, "liver", tuple(middle), (14.0, 11.0, 12.0), 5.0, "tumor")
    _, share = coverage(scan, tuple(middle), (14.0, 11.0, 12.0))
    expected = 4 / 3 * math.pi * 14 * 11 * 12
    assert share.sum() * scan.frame.voxel_mm3 == pytest.approx(expected, rel=0.01)
    mask = whole(after, "liver_tumor")
    assert mask.sum() * scan.frame.voxel_mm3 == pytest.approx(expected, rel=0.03)
    assert math.dist(center(after, mask), middle) < 0.3
    core = np.zeros_like(mask)
    core[slices(coverage(scan, tuple(middle), (10.0, 8.0, 9.0))[0])] = share_of(scan, middle) == 1
    assert after.hu[core].mean() == pytest.approx(scan.hu[core].mean() - 35, abs=0.2)
    assert after.hu[core].std() == pytest.approx(scan.hu[core].std(), abs=0.2)
    untouched = ~mask & (after.hu == scan.hu)
    assert untouched.sum() > 0.95 * (~mask).sum()
    assert (scan.regions.keys(), after.regions["liver"].count) == ({"liver"}, scan.regions["liver"].count)


def share_of(scan: Scan, middle: NDArray[np.float64]) -> NDArray[np.float64]:
    return coverage(scan, tuple(middle), (10.0, 8.0, 9.0))[1]


def test_a_scan_without_an_organs_voxels_is_read_again_and_an_empty_lesion_class_stays(tmp_path):
    scan = synthetic(np.diag([3.0, 3.0, 4.0, 1.0]))
    scan = replace(scan, regions=scan.regions | {"spleen": EMPTY, "liver_cyst": EMPTY})
    again = read_case(find_cases(write_scan(scan, tmp_path, "P"))[0])
    assert set(again.regions) == {"liver", "liver_cyst"} and again.regions["liver_cyst"] is EMPTY


def test_a_ball_in_the_room_found_fits_and_a_larger_or_second_one_does_not():
    scan = synthetic(np.diag([1.5, 1.5, 2.0, 1.0]))
    middle, radius = room(scan, "liver")
    assert radius == pytest.approx(1.5 * 24, abs=1.6)
    after = insert_lesion(scan, "liver", middle, radius, 5.0, "cyst")
    assert after.regions["liver_cyst"].count > 0
    for wrong in (radius + 4, 0.1):
        with pytest.raises(ValueError, match="does not lie in free tissue of the liver"):
            insert_lesion(scan, "liver", (middle[0], middle[1] + 0.7, middle[2]), wrong, 5.0, "cyst")
    with pytest.raises(ValueError, match="free tissue"):
        insert_lesion(after, "liver", middle, 5.0, 90.0, "tumor")
    with pytest.raises(ValueError, match="no lesion 'pdac' of 'liver'"):
        insert_lesion(scan, "liver", middle, 5.0, 5.0, "pdac")
    with pytest.raises(ValueError, match="no room in spleen"):
        room(scan, "spleen")
    assert room(after, "liver")[1] < radius


def test_a_lesion_in_the_liver_of_a_real_scan_has_the_volume_of_a_ball(shared):
    folder = shared / "ct"
    ct = nibabel.load(folder / "example_ct.nii.gz")
    labels = np.asarray(nibabel.load(folder / "example_seg_fast_force_split.nii.gz").dataobj)
    hu = np.asarray(ct.dataobj).astype(np.int16)
    scan = Scan("real", "someone", "test", Frame(ct.affine, hu.shape), hu, {"liver": Region.of(labels == 5)})
    middle, radius = room(scan, "liver")
    assert radius > 25
    after = insert_lesion(scan, "liver", middle, 12.0, 5.0, "tumor")
    share = coverage(scan, middle, (12.0,) * 3)[1]
    assert share.sum() * 0.027 == pytest.approx(7.28, abs=0.02)
    assert after.regions["liver_tumor"].count * 0.027 == pytest.approx(6.94, abs=0.02)
