"""What the doctor says, and that its faults are what is refused."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from tests.tumorvqa.cases import body, ellipsoid, frame, save, write_case
from tumorvqa.doctor import check, doctor
from tumorvqa.readers import case_files, find_cases, read_case
from tumorvqa.scans import CaseFault


def said(folder, level):
    return " ".join(remark.text for remark in doctor(find_cases(folder)[0]) if remark.level == level)


def checked(folder):
    scan = read_case(find_cases(folder)[0])
    check(scan)
    return scan


def refusal(folder):
    """What reading or checking the case says, "" if it is taken."""
    try:
        checked(folder)
    except CaseFault as fault:
        return str(fault)
    return ""


@pytest.fixture
def case(tmp_path):
    return write_case(tmp_path / "CASE_1")


def test_a_good_case_has_no_fault_and_no_warning(case):
    assert said(case, "fault") == said(case, "warning") == ""
    assert "44 x 36 x 24 voxels of 3 x 3 x 4 mm, axes to RAS" in said(case, "ok")
    assert "annotated and there: aorta, left kidney, right kidney, liver, liver tumor" in said(case, "ok")
    assert "not annotated, so not known: liver lesion, liver cyst" in said(case, "ok")


BAD = {
    "1024 too high": (lambda hu: hu + 1024, "about 1024 too high"),
    "1000 too high": (lambda hu: hu + 1000, "about 1024 too high"),
    "1024 too high but for padding": (lambda hu: np.where(hu < -900, -2000, hu + 1024), "about 1024 too high"),
    "1024 too low": (lambda hu: hu - 1024, "about 1024 too low"),
    "magnetic resonance": (lambda hu: np.abs(hu + 1000) // 3, "an MR volume, or numbers that are no HU"),
    "1024 too high, filled with -1000": (lambda hu: np.where(hu < -900, -1000, hu + 1024), "about 1024 too high"),
    "1024 too high, filled with -1024": (lambda hu: np.where(hu < -900, -1024, hu + 1024), "about 1024 too high"),
    "magnetic resonance, filled": (lambda hu: np.where(hu < -900, -1024, np.abs(hu + 1000) // 5), "an MR volume"),
    "bones only": (lambda hu: np.where(hu < -900, -1000, 700), "no soft tissue"),
}


@pytest.mark.parametrize("kind", BAD)
def test_values_that_are_no_hu_are_a_fault(tmp_path, kind):
    change, text = BAD[kind]
    case = write_case(tmp_path / "CASE_1", hu=change(body()[0].astype(np.int32)).astype(np.int16))
    assert text in said(case, "fault") and text in refusal(case)


@pytest.mark.parametrize("padding", [-1024, -2000, -3024])
def test_padding_is_no_fault(tmp_path, padding):
    hu, _ = body()
    hu[~ellipsoid((0, 0, 0), (64, 64, 400))] = padding
    case = write_case(tmp_path / "CASE_1", hu=hu)
    assert refusal(case) == said(case, "fault") == ""
    assert ("padding" in said(case, "ok")) == (padding < -1500)


def test_the_shared_ct_passes_and_the_shared_mr_does_not(shared):
    ct, labels = shared / "ct" / "example_ct.nii.gz", shared / "ct" / "example_seg_fast_force_split.nii.gz"
    remarks = doctor(case_files(ct, labels))
    assert not [remark for remark in remarks if remark.level == "fault"]
    text = " ".join(remark.text for remark in remarks)
    for part in (
        "voxels above 3000 HU",
        "liver: touches the superior end",
        "pancreas: 4 pieces",
        "without a voxel: es",
    ):
        assert part in text
    check(read_case(case_files(ct, labels)))
    mr = nib.load(shared / "ct" / "example_mr_sm.nii.gz")
    scan = read_case(case_files(ct, labels))
    with pytest.raises(CaseFault, match="an MR volume"):
        check(replace(scan, hu=np.asarray(mr.dataobj), regions={}))
    with pytest.raises(CaseFault, match="an MR volume"):
        check(replace(scan, hu=np.pad(np.asarray(mr.dataobj), 20, constant_values=-1024), regions={}))
    check(replace(scan, hu=np.pad(scan.hu, 20, constant_values=-1024), regions={}))


@pytest.mark.parametrize("axis", range(3))
def test_masks_that_are_mirrored_on_the_shared_ct_are_refused(shared, axis):
    files = case_files(shared / "ct" / "example_ct.nii.gz", shared / "ct" / "example_seg_fast_force_split.nii.gz")
    scan = read_case(files)
    with pytest.raises(CaseFault, match="fat or air: masks of another frame or case"):
        check(replace(scan, hu=np.flip(scan.hu, axis)))


def test_masks_that_lie_in_air_are_refused(tmp_path):
    _, masks = body()
    case = write_case(tmp_path / "CASE_1", masks={name: np.roll(mask, 12, 1) for name, mask in masks.items()})
    assert "fat or air" in refusal(case) and "fat or air" in said(case, "fault")


def test_what_cannot_be_read_is_the_last_thing_said(case):
    path = case / "segmentations" / "liver.nii.gz"
    path.write_bytes(path.read_bytes()[:60])
    remarks = doctor(find_cases(case)[0])
    assert [remark.level for remark in remarks] == ["ok", "fault"] and remarks[-1].text == refusal(case)


def test_every_oddity_is_a_warning_in_words_and_no_reason_to_refuse(tmp_path):
    hu, masks = body()
    hu[20, 20, 5] = 3071
    hu[..., 9] = hu[..., 8]
    masks["kidney_left"], masks["kidney_right"] = masks["kidney_right"], masks["kidney_left"]
    masks["spleen"] = masks["spleen"] | ellipsoid((-40, 20, 10), (6, 6, 6))
    masks["pancreas"] = masks["pancreas"] | (masks["liver"] & ellipsoid((10, 5, 0), (8, 8, 8)))
    masks["liver"] = masks["liver"].astype(np.uint8) * 255
    masks["left_toe"] = masks["aorta"]
    masks["gall_bladder"] = ellipsoid((66, 0, 0), (8, 8, 8))
    case = write_case(tmp_path / "CASE_1", hu, masks)
    warnings = said(case, "warning")
    for part in (
        "segmentations/liver.nii.gz is not binary",
        "'left_toe' is no structure we know",
        "1 voxels above 3000 HU: metal",
        "slice 8 and the next are identical (1 such pairs)",
        "spleen: 2 pieces; the second has",
        "liver and pancreas share",
        "right kidney lies to the left of the left kidney",
        "of it lies in air",
    ):
        assert part in warnings
    assert refusal(case) == ""


def test_voxels_of_two_typed_lesions_are_a_warning(tmp_path):
    hu, masks = body()
    masks["liver_cyst"] = masks["liver_tumor"] & (np.arange(len(hu)) < 33)[:, None, None]
    masks["liver_lesion"] = masks["liver_tumor"]
    case = write_case(tmp_path / "CASE_1", hu, masks)
    text = f"liver tumor and liver cyst share {masks['liver_cyst'].sum()} voxels, which count as liver tumor."
    assert said(case, "warning") == text and refusal(case) == ""


def test_frames_that_are_unusual_are_told(tmp_path):
    hu, masks = body()
    shear, turn = np.eye(4), np.eye(4)
    shear[0, 2] = 0.2
    turn[:2, :2] = [[0.96, -0.28], [0.28, 0.96]]
    wide, metres = np.diag([1, 1, 4, 1.0]), np.diag([0.01, 0.01, 0.01, 1])
    for k, (change, text) in enumerate(
        (
            (shear, "sheared"),
            (turn, "oblique"),
            (wide, "more than 3 times as long"),
            (metres, "are the units millimetres"),
        )
    ):
        case = write_case(tmp_path / str(k), hu, masks, change @ frame().affine)
        assert text in said(case, "warning") and refusal(case) == ""


def test_forms_that_disagree_or_are_missing_are_told(case):
    image = nib.load(case / "ct.nii.gz")
    hu = np.asarray(image.dataobj)
    both = nib.Nifti1Image(hu, image.affine)
    moved = image.affine.copy()
    moved[0, 3] += 7
    both.set_qform(moved, 1)
    nib.save(both, case / "ct.nii.gz")
    assert "sform and qform disagree by up to 7 mm; the sform is used" in said(case, "warning")
    none = nib.Nifti1Image(hu, None)
    none.header.set_zooms((3, 3, 4))
    nib.save(none, case / "ct.nii.gz")
    assert "left and right are a guess" in said(case, "warning")


def test_a_case_without_masks_is_a_warning(tmp_path):
    save(body()[0], tmp_path / "ct.nii.gz")
    assert "no masks: nothing can be measured" in said(tmp_path, "warning")
