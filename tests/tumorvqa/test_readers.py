"""What is read, what is refused, and that nothing of a header leaks."""

import csv
import gzip
import hashlib
import hmac
import re
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from tests.tumorvqa.cases import SHAPE, body, frame, save, write_case
from tumorvqa.readers import case_files, find_cases, identity, patient_group, read_case
from tumorvqa.readers.patients import meta
from tumorvqa.readers.totalsegmentator import CLASSES, LABELS
from tumorvqa.scans import EMPTY, CaseFault

MEASURED_ON_THE_SHARED_CT = {  # cm^3, HU
    "spleen": (261.0, 32.8),
    "liver": (1125.7, 44.5),
    "kidney_right": (192.6, 10.7),
    "kidney_left": (137.4, 18.4),
    "pancreas": (18.8, -6.4),
    "gallbladder": (35.6, 2.3),
    "bladder": (479.4, 11.9),
    "aorta": (49.7, 42.1),
}


def read(folder, **options):
    return read_case(find_cases(folder)[0], **options)


@pytest.fixture
def case(tmp_path):
    return write_case(tmp_path / "CASE_1")


def header_bytes(path, change) -> None:
    """Changes a file's header (a dict-like view of its fields) in place."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    change(header)
    data[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(data)))


def test_a_folder_of_masks_becomes_regions_with_the_same_voxels(case):
    hu, masks = body()
    scan = read(case)
    assert (scan.hu == hu).all() and scan.hu.dtype == np.int16
    assert set(scan.regions) == set(masks)
    for name, region in scan.regions.items():
        whole = np.zeros(SHAPE, bool)
        whole[tuple(slice(*ends) for ends in region.box)] = region.mask
        assert (whole == masks[name]).all()
    assert (scan.case, scan.source, scan.provenance) == ("CASE_1", "AbdomenAtlas", "unknown")


def test_a_label_map_says_the_same_as_a_file_per_organ(tmp_path):
    hu, masks = body()
    names = [name for name in masks if name != "liver_tumor"]
    write_case(tmp_path / "files", hu, {name: masks[name] for name in names})
    save(hu, tmp_path / "map" / "ct.nii.gz")
    save(
        sum((3 * k + 3) * masks[name].astype(np.uint8) for k, name in enumerate(names)),
        tmp_path / "map" / "combined_labels.nii.gz",
    )
    labels = ", ".join(f'"{3 * k + 3}": "{name}"' for k, name in enumerate(names))
    (tmp_path / "map" / "labels.json").write_text("{" + labels + "}")
    files, one = (read(tmp_path / kind).regions for kind in ("files", "map"))
    assert {name: (r.box, r.mask.tobytes("C")) for name, r in files.items()} == {
        name: (r.box, r.mask.tobytes("C")) for name, r in one.items()
    }


def test_names_of_abdomenatlas_are_understood_and_others_are_reported(case):
    _, masks = body()
    for name in ("postcava", "_gall_bladder", "celiac_trunk", "pancreatic_pdac", "left_toe"):
        save(masks["pancreas"], case / "segmentations" / f"{name}.nii.gz")
    files = find_cases(case)[0]
    assert {"inferior_vena_cava", "gallbladder", "celiac_artery", "pancreas_pdac"} <= set(files.masks)
    assert files.unknown == ("left_toe",) and files.by_ai == {"gallbladder"}
    assert read_case(files).provenance == "ai"


def test_several_files_of_one_structure_are_united(case):
    for side, row in (("left", slice(10, 12)), ("right", slice(30, 33))):
        part = np.zeros(SHAPE, bool)
        part[row, 10, 10] = True
        save(part, case / "segmentations" / f"kidney_cyst_{side}.nii.gz")
    region = read(case).regions["kidney_cyst"]
    assert region.count == 5 and region.box == ((10, 33), (10, 11), (10, 11))


def test_an_absent_file_is_unknown_and_an_empty_one_is_none(case):
    save(np.zeros(SHAPE, bool), case / "segmentations" / "kidney_cyst.nii.gz")
    regions = read(case).regions
    assert regions["kidney_cyst"] is EMPTY and "kidney_tumor" not in regions


def test_an_empty_file_of_a_measured_organ_is_a_fault_but_not_in_totalsegmentators_output(case):
    save(np.zeros(SHAPE, bool), case / "segmentations" / "spleen.nii.gz")
    with pytest.raises(CaseFault, match=r"segmentations/spleen.nii.gz has no voxel: delete the file if the spleen"):
        read(case)
    save(np.zeros(SHAPE, bool), case / "segmentations" / "vertebrae_L1.nii.gz")
    scan = read(case)
    assert scan.regions["spleen"] is EMPTY and scan.provenance == "ai"


def test_labels_without_a_name_are_a_fault_that_lists_them(tmp_path):
    hu, masks = body()
    ct = save(hu, tmp_path / "a.nii.gz")
    labels = save(
        (masks["liver"] * 5 + masks["spleen"] * 130 + masks["aorta"] * 200).astype(np.uint8), tmp_path / "b.nii.gz"
    )
    with pytest.raises(CaseFault, match=r"b.nii.gz has labels without a name: 130, 200"):
        read_case(case_files(ct, labels))


LABELS_WRONG = {
    "damaged": ("{", "labels.json is damaged"),
    "a list": ("[1]", "labels.json is damaged"),
    "deep": ("[" * 100000, "labels.json is damaged"),
    "a fraction": ('{"1.5": "liver"}', "labels.json is damaged"),
    "negative": ('{"-2": "liver"}', "names a label that no map can hold"),
    "65536": ('{"65536": "liver"}', "names a label that no map can hold"),
    "huge": ('{"99999999999": "liver"}', "names a label that no map can hold"),
    "absent": (None, "combined_labels.nii.gz has no labels.json beside it"),
}


@pytest.mark.parametrize("kind", LABELS_WRONG)
def test_wrong_names_of_labels_are_a_fault_of_their_case_and_not_of_the_folder(tmp_path, kind):
    text, said = LABELS_WRONG[kind]
    hu, masks = body()
    write_case(tmp_path / "good")
    ct = save(hu, tmp_path / "bad" / "ct.nii.gz")
    combined = save(masks["liver"], tmp_path / "bad" / "combined_labels.nii.gz")
    if text is not None:
        (tmp_path / "bad" / "labels.json").write_text(text)
    bad, good = find_cases(tmp_path)
    assert read_case(good).case == "good" and set(bad.paths) == set((tmp_path / "bad").iterdir())
    with pytest.raises(CaseFault, match=said):
        read_case(bad)
    if text is not None:
        with pytest.raises(CaseFault, match=said):
            read_case(case_files(ct, combined))


def test_a_case_is_called_the_same_from_wherever_it_is_named(tmp_path, monkeypatch):
    """Its id, patient and contrast, as part of a folder, alone, and as the working folder."""
    write_case(tmp_path / "CASE_1")
    (tmp_path / "metadata.csv").write_text("BDMAP ID,original id,contrast\nCASE_1,P9,Venous\n")
    (part,), (alone,) = find_cases(tmp_path), find_cases(tmp_path / "CASE_1")
    monkeypatch.chdir(tmp_path / "CASE_1")
    (here,) = find_cases(".")
    assert part == alone == here
    assert (part.id, identity(part), read_case(part).meta.contrast) == ("CASE_1", "P9", "venous")


def test_meta_json_and_metadata_csv_tell_patient_sex_age_contrast(tmp_path):
    write_case(tmp_path / "CASE_1", meta={"patient": "P7", "source": "phantom", "provenance": "phantom", "sex": "F"})
    write_case(tmp_path / "CASE_2")
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["BDMAP ID", "original id", "sex", "age", "scanner", "contrast"])
        rows.writerow(["CASE_1", "P9", "M", "063Y", "Scanner A", "Venous"])
        rows.writerow(["CASE_2", "P7", "male", "", "", "Plain"])
    one, two = (read_case(files, salt="s") for files in find_cases(tmp_path))
    assert (one.source, one.provenance, one.meta.sex, one.meta.age) == ("phantom", "phantom", "female", 63)
    assert (one.meta.contrast, one.meta.scanner) == ("venous", "Scanner A")
    assert (two.meta.sex, two.meta.age, two.meta.contrast, two.meta.scanner) == ("male", None, "plain", None)
    assert one.patient == two.patient == hmac.new(b"s", b"P7", hashlib.sha256).hexdigest()[:12]


@pytest.mark.parametrize(
    "said, years",
    [("063Y", 63), ("63", 63), ("006M", 0), ("018D", 0), ("012W", 0), ("030M", 2), ("110W", 2), ("18 months", 1)],
)
def test_an_age_is_whole_years_whatever_its_unit(said, years):
    assert meta({"age": said}).age == years


@pytest.mark.parametrize("said", ["121", "", "adult", "-3"])
def test_what_is_no_age_is_none(said):
    assert meta({"age": said}).age is None


SUBSET = ("liver", "spleen", "urinary_bladder", "small_bowel", "inferior_vena_cava")


@pytest.mark.parametrize(
    "names, layout, provenance",
    [
        (SUBSET, "totalsegmentator", "ai"),
        (("liver", "kidney_cyst_left"), "totalsegmentator", "ai"),
        (("liver", "spleen", "kidney_left", "aorta"), "abdomenatlas", "unknown"),  # both spell these so
        (("liver", "postcava", "inferior_vena_cava"), "abdomenatlas", "unknown"),
        (("liver", "_postcava"), "abdomenatlas", "ai"),
        (("liver", "liver_tumor", "small_bowel"), "abdomenatlas", "unknown"),
    ],
)
def test_a_subset_of_totalsegmentators_masks_is_known_by_its_spellings(tmp_path, names, layout, provenance):
    mask = body()[1]["liver"]
    files = find_cases(write_case(tmp_path / "CASE_1", masks=dict.fromkeys(names, mask)))[0]
    assert (files.layout, read_case(files).provenance) == (layout, provenance)


def test_the_patient_group_needs_the_salt_to_be_guessed():
    assert patient_group("P7", "a") != patient_group("P7", "b") and re.fullmatch("[0-9a-f]{12}", patient_group("P7"))


def test_no_text_of_a_header_reaches_the_scan_or_an_error(case):
    secret = b"DOE^JANE"

    def name(header):
        header["descrip"] = header["aux_file"] = header["db_name"] = header["intent_name"] = secret

    for path in (case / "ct.nii.gz", case / "segmentations" / "liver.nii.gz"):
        header_bytes(path, name)
    assert "DOE" not in repr(read(case))
    (case / "ct.nii.gz").write_bytes((case / "ct.nii.gz").read_bytes()[:-3000])
    with pytest.raises(CaseFault) as fault:
        read(case)
    assert "DOE" not in str(fault.value) and str(case) not in str(fault.value)


def test_slope_and_intercept_are_applied_once_and_rounded(tmp_path):
    hu, masks = body()
    image = nib.Nifti1Image((hu.astype(np.int32) + 1024).clip(0).astype(np.uint16), frame().affine)
    image.header.set_slope_inter(1, -1024)
    (tmp_path / "segmentations").mkdir()
    nib.save(image, tmp_path / "ct.nii.gz")
    save(masks["liver"], tmp_path / "segmentations" / "liver.nii.gz")
    assert (read(tmp_path).hu == hu.clip(-1024)).all()
    save(hu + np.float32(0.4), tmp_path / "ct.nii.gz")
    assert (read(tmp_path).hu == hu).all()
    save(hu.astype(">i4"), tmp_path / "ct.nii.gz")
    assert (read(tmp_path).hu == hu).all()


@pytest.mark.parametrize(
    "kind, inside",
    [("float32", 0.9999), ("float64", 0.51), ("int8", 1), ("uint8", 255), ("int16", 7), (">f4", 1.0)],
)
def test_masks_of_any_real_type_are_inside_above_one_half(case, kind, inside):
    _, masks = body()
    image = nib.Nifti1Image((masks["liver"] * inside).astype(kind), frame().affine)
    nib.save(image, case / "segmentations" / "liver.nii.gz")
    assert read(case).regions["liver"].count == masks["liver"].sum()


def test_a_trailing_axis_of_one_is_dropped_and_more_are_refused(case):
    hu, _ = body()
    save(hu[..., None], case / "ct.nii.gz")
    assert read(case).hu.shape == SHAPE
    save(np.stack([hu, hu], axis=-1), case / "ct.nii.gz")
    with pytest.raises(CaseFault, match=r"ct.nii.gz has the size 44 x 36 x 24 x 2; three positive sizes are needed"):
        read(case)


def test_nan_is_a_fault(case):
    hu, _ = body()
    values = hu.astype(np.float32)
    values[3, 4, 5] = np.nan
    save(values, case / "ct.nii.gz")
    with pytest.raises(CaseFault, match=r"ct.nii.gz holds values that are no numbers"):
        read(case)


def test_a_color_mask_is_refused(case):
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, frame().affine), case / "segmentations" / "liver.nii.gz")
    with pytest.raises(CaseFault, match=r"segmentations/liver.nii.gz holds colors or complex numbers"):
        read(case)


@pytest.mark.parametrize("file", ["ct.nii.gz", "segmentations/liver.nii.gz"])
def test_a_forged_size_is_refused_without_allocating_it(case, file):
    header_bytes(case / file, lambda header: header["dim"].__setitem__(slice(1, 4), 30000))
    files = find_cases(case)[0]
    tracemalloc.start()
    with pytest.raises(CaseFault, match=re.escape(file) + " says it has 30000 x 30000 x 30000 voxels"):
        read_case(files)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_the_memory_cap_is_what_a_caller_says(case):
    with pytest.raises(CaseFault, match="the cap is 1e-05 GB"):
        read(case, memory_gb=1e-5)


@pytest.mark.parametrize(
    "damage, text",
    [
        (lambda data: data[: len(data) // 2], "is damaged"),
        (lambda data: data[: len(data) - 4], "is damaged"),  # all voxels, but no checksum
        (lambda data: data[:-6] + bytes([data[-6] ^ 1]) + data[-5:], "is damaged"),  # a wrong checksum
        (lambda data: gzip.compress(gzip.decompress(data)[:-100]), "is cut off"),
        (lambda data: gzip.compress(b"hello"), "is not a NIfTI file"),
        (lambda data: gzip.compress(bytes(400)), "is not a NIfTI file"),
        (lambda data: b"hello", "cannot be read"),
        (lambda data: b"", "is not a NIfTI file"),
    ],
)
def test_a_damaged_ct_is_one_clear_line(case, damage, text):
    path = case / "ct.nii.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CaseFault, match="^ct.nii.gz " + text) as fault:
        read(case)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda header: header["dim"].__setitem__(2, -5), "three positive sizes"),
        (lambda header: header.__setitem__("datatype", 3333), "damaged header"),
        (lambda header: header.__setitem__("srow_x", 0), "maps voxels onto a plane"),
        (lambda header: header.__setitem__("srow_y", np.nan), "not finite"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(case, change, text):
    header_bytes(case / "ct.nii.gz", change)
    with pytest.raises(CaseFault, match=text):
        read(case)


def test_no_header_makes_more_than_a_case_fault(case):
    """Whatever its bytes: it is read, or refused in one line."""
    path, random = case / "segmentations" / "liver.nii.gz", np.random.default_rng(0)
    good = gzip.decompress(path.read_bytes())
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for at in random.integers(0, 352, 2):
            data[at] = random.integers(256)
        path.write_bytes(gzip.compress(bytes(data), 1))
        try:
            read(case, memory_gb=0.05)
        except CaseFault as fault:
            refused += 1
            assert "\n" not in str(fault)
    assert 20 < refused < 280


@pytest.mark.parametrize("offset", [100, -5, np.nan, np.inf, 1e30])
def test_voxels_cannot_begin_within_the_header_or_nowhere(case, offset):
    header_bytes(case / "ct.nii.gz", lambda header: header.__setitem__("vox_offset", offset))
    with pytest.raises(CaseFault, match=r"ct.nii.gz has a damaged header: its voxels cannot begin at byte"):
        read(case)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_voxels_begin_behind_the_header_where_it_does_not_say(case, kind):
    hu, _ = body()
    data = bytearray(kind(hu, frame().affine).to_bytes())
    at, size = (108, 4) if kind is nib.Nifti1Image else (168, 8)
    data[at : at + size] = bytes(size)
    (case / "ct.nii.gz").write_bytes(gzip.compress(bytes(data), 1))
    assert (read(case).hu == hu).all()


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
def test_the_lowest_number_of_int16_is_padding_in_every_type(case, dtype):
    hu, _ = body()
    hu[:2] = -32768
    save(hu.astype(dtype), case / "ct.nii.gz")
    assert (read(case).hu == hu).all()


@pytest.mark.parametrize("value", [-32769, 32768])
def test_numbers_beyond_int16_are_no_hu(case, value):
    hu = body()[0].astype(np.int32)
    hu[1, 2, 3] = value
    save(hu, case / "ct.nii.gz")
    with pytest.raises(CaseFault, match=f"values up to {value}, which are no HU"):
        read(case)


def test_the_sform_wins_over_the_qform(case):
    hu, _ = body()
    image = nib.Nifti1Image(hu, frame().affine)
    moved = frame().affine.copy()
    moved[:3, 3] += 50
    image.set_qform(moved, 1)
    image.set_sform(frame().affine, 1)
    nib.save(image, case / "ct.nii.gz")
    assert read(case).frame.affine == pytest.approx(frame().affine)
    image.set_sform(None, 0)
    nib.save(image, case / "ct.nii.gz")
    assert set(read(case).faults.values()) == {"frame_mismatch"}


def test_folders_without_a_case_and_missing_files_say_so(tmp_path):
    for call, text in (
        (lambda: find_cases(tmp_path / "none"), "'none' is not a folder"),
        (lambda: find_cases(tmp_path), "none of its folders holds a ct.nii.gz"),
        (lambda: case_files(tmp_path / "ct.nii.gz", tmp_path), "no file or folder 'ct.nii.gz'"),
    ):
        with pytest.raises(ValueError, match=text):
            call()


def test_paths_name_every_file_of_a_case_once(case):
    (case / "meta.json").write_text("{}")
    files = find_cases(case)[0]
    assert sorted(files.paths) == sorted(path for path in case.rglob("*") if path.is_file())


def test_the_table_of_totalsegmentators_labels_equals_that_in_its_files(shared):
    image = nib.load(shared / "ct" / "example_seg.nii.gz")
    text = image.header.extensions[0].get_content().decode()
    assert {int(k): name for k, name in re.findall(r'Key="(\d+)".*?CDATA\[(.*?)\]', text)} == LABELS


def test_totalsegmentators_118_files_equal_its_label_map(shared):
    ct, folder = shared / "ct" / "example_ct_sm.nii.gz", shared / "ct" / "example_seg_fast"
    files, one = (case_files(ct, labels) for labels in (folder, shared / "ct" / "example_seg_fast.nii.gz"))
    assert files.layout == one.layout == "totalsegmentator" and files.unknown == ()
    assert set(CLASSES) - {path.name.removesuffix(".nii.gz") for path in folder.iterdir()} == set()
    first, second = read_case(files).regions, read_case(one).regions
    assert {name: (region.box, region.count) for name, region in first.items()} == {
        name: (region.box, region.count) for name, region in second.items()
    }


def test_organs_of_the_shared_ct_have_the_reference_values(shared):
    files = case_files(shared / "ct" / "example_ct.nii.gz", shared / "ct" / "example_seg_fast_force_split.nii.gz")
    scan = read_case(files)
    for name, (volume, hu) in MEASURED_ON_THE_SHARED_CT.items():
        region = scan.regions[name]
        values = scan.hu[tuple(slice(*ends) for ends in region.box)][region.mask]
        assert region.count * scan.frame.voxel_mm3 / 1000 == pytest.approx(volume, abs=0.05)
        assert values.mean() == pytest.approx(hu, abs=0.05)
