"""The way a volume is stored changes nothing that is measured."""

import itertools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.tumorvqa.cases import SHAPE, body, ellipsoid, frame, save, write_case
from tumorvqa.measuring import measure
from tumorvqa.readers import case_files, find_cases, frames, read_case

ORDERS = [(order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product((0, 1), repeat=3)]
SHEAR = np.eye(4) + np.diag([0.25, 0, 0], k=1)
TURN = np.eye(4)
TURN[:3, :3] = Rotation.from_euler("xyz", [12, -9, 15], degrees=True).as_matrix()
FRAMES = {
    "anisotropic": np.diag([1.0, 0.8, 2.0, 1.0]) @ frame().affine,
    "sheared": SHEAR @ frame().affine,
    "oblique": TURN @ frame().affine,
}


def stored(voxels, affine, order, flips):
    """The same voxels at the same places, with axes in another order and direction."""
    turned = np.column_stack([order, [-1 if flip else 1 for flip in flips]])
    back = nib.orientations.inv_ornt_aff(turned, voxels.shape)
    return nib.orientations.apply_orientation(voxels, turned), affine @ back


def same(measured):
    """All but what rests on the origin, which files keep in single precision."""
    return replace(measured, lesions=tuple(replace(lesion, centroid=(0, 0, 0)) for lesion in measured.lesions))


@pytest.mark.parametrize("kind", FRAMES)
def test_48_orders_and_directions_of_axes_give_identical_measurements(tmp_path, kind):
    hu, masks = body()
    masks["pancreas_pdac"] = ellipsoid((-3, -20, 0), (8, 8, 8))  # on the aorta
    labels = sum((k + 1) * masks[name] for k, name in enumerate(("spleen", "kidney_right", "kidney_left", "pancreas")))
    affine = FRAMES[kind]
    found = []
    for k, (order, flips) in enumerate(ORDERS):
        folder = tmp_path / str(k)
        save(*(part := stored(hu, affine, order, flips))[:1], folder / "ct.nii.gz", part[1])
        for name, turn in (("liver", k), ("liver_tumor", 47 - k), ("aorta", (k + 5) % 48), ("pancreas_pdac", k)):
            voxels, where = stored(masks[name].astype(np.uint8), affine, *ORDERS[turn])
            save(voxels, folder / "segmentations" / f"{name}.nii.gz", where)
        voxels, where = stored(labels.astype(np.uint8), affine, *ORDERS[(7 * k) % 48])
        save(voxels, folder / "combined_labels.nii.gz", where)
        (folder / "labels.json").write_text('{"1": "spleen", "2": "kidney_right", "3": "kidney_left", "4": "pancreas"}')
        found.append(measure(read_case(find_cases(folder)[0])))
    first = replace(found[0], case="", patient="")
    assert first.organs["liver"].volume.value and [lesion.organ for lesion in first.lesions] == ["liver", "pancreas"]
    assert first.lesions[1].contacts["aorta"].value
    for other in found[1:]:
        assert same(replace(other, case="", patient="")) == same(first)
        assert other.lesions[0].centroid == pytest.approx(first.lesions[0].centroid, abs=1e-3)


def test_ras_order_equals_nibabels_closest_canonical(tmp_path):
    hu, _ = body()
    for k, (order, flips) in enumerate(ORDERS[::5]):
        path = save(*(part := stored(hu, FRAMES["oblique"], order, flips))[:1], tmp_path / f"{k}.nii.gz", part[1])
        image = nib.load(path)
        voxels, where = frames.to_ras(np.asarray(image.dataobj), image.affine)
        canonical = nib.as_closest_canonical(image)
        assert (voxels == np.asarray(canonical.dataobj)).all()
        assert where.affine == pytest.approx(canonical.affine) and where.shape == canonical.shape


def test_a_mask_less_than_a_tenth_of_a_voxel_away_is_taken_as_it_is(tmp_path):
    _, masks = body()
    where = frame()
    moved = where.affine.copy()
    moved[:3, 3] += 0.09 * np.array(where.spacing)
    assert frames.onto(masks["liver"].view(np.uint8), moved, where)[1] == ""
    moved[:3, 3] += 0.02 * np.array(where.spacing)
    assert frames.onto(masks["liver"].view(np.uint8), moved, where)[1] == "resampled"


def test_a_mask_of_finer_voxels_that_covers_the_ct_is_resampled_to_the_nearest(tmp_path):
    _, masks = body()
    where = frame()
    fine = np.repeat(np.repeat(masks["liver"], 3, axis=0), 3, axis=2).astype(np.uint8)
    affine = where.affine @ np.diag([1 / 3, 1, 1 / 3, 1])
    affine[:3, 3] = where.affine[:3, 3] - where.affine[:3, :3] @ [1 / 3, 0, 1 / 3]
    mask, how = frames.onto(fine, affine, where)
    assert how == "resampled" and (mask == masks["liver"]).all()


def test_a_mask_that_does_not_cover_the_ct_is_left_out_and_said_to_be(tmp_path):
    folder = write_case(tmp_path / "case")
    _, masks = body()
    moved = frame().affine.copy()
    moved[2, 3] += 4 * 4.0
    save(masks["spleen"], folder / "segmentations" / "spleen.nii.gz", moved)
    scan = read_case(find_cases(folder)[0])
    assert scan.faults == {"spleen": "frame_mismatch"} and "spleen" not in scan.regions
    measured = measure(scan)
    assert (
        measured.organs["spleen"].volume.status == "frame_mismatch" and measured.organs["spleen"].volume.value is None
    )
    assert measured.faults == scan.faults


def test_a_label_map_of_another_frame_is_a_fault(tmp_path):
    hu, masks = body()
    ct = save(hu, tmp_path / "scan.nii.gz")
    cut = save(masks["spleen"][..., 6:], tmp_path / "labels.nii.gz", frame().affine)
    with pytest.raises(ValueError, match=r"labels.nii.gz is in another frame than the CT: 44 x 36 x 18 voxels"):
        read_case(case_files(ct, cut))


def test_the_shared_files_cut_without_moving_their_origin_are_not_mixed(shared):
    """Slices 82 to 111 of the full CT claim the place of slices 0 to 29."""
    small, full = shared / "ct" / "example_ct_sm.nii.gz", shared / "ct" / "example_ct.nii.gz"
    alike = read_case(case_files(small, shared / "ct" / "example_seg_fast.nii.gz"))
    whole = read_case(case_files(full, shared / "ct" / "example_seg_fast_force_split.nii.gz"))
    assert (alike.hu == whole.hu[..., 82:]).all() and alike.frame.affine == pytest.approx(whole.frame.affine)
    for ct, labels in ((small, "example_seg_fast_force_split.nii.gz"), (full, "example_seg_fast.nii.gz")):
        with pytest.raises(ValueError, match=r"in another frame than the CT.*with the same origin"):
            read_case(case_files(ct, shared / "ct" / labels))


def test_spacing_and_volume_of_a_sheared_frame_differ_as_its_determinant_says():
    where = frame()
    sheared = replace(where, affine=SHEAR @ where.affine)
    assert sheared.voxel_mm3 == pytest.approx(where.voxel_mm3)
    assert np.prod(sheared.spacing) > 1.02 * where.voxel_mm3
    assert where.shape == SHAPE
