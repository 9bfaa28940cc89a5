"""Many cases: kept results, resuming after a kill, cases set aside, processes that die."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.tumorvqa.by_hand import small_case
from tumorvqa import work
from tumorvqa.cli import main
from tumorvqa.inserting import insert_into
from tumorvqa.readers import find_cases, patient_group, read_case
from tumorvqa.sets import measured_in
from tumorvqa.work import here, in_processes, measure_all


def results(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "cases").iterdir())}


def damaged(folder: Path) -> dict[str, str]:
    """A folder of good cases and of every kind of bad one; name -> words of the reason."""
    for name in ("good", "last"):
        small_case(folder, name)
    cut = small_case(folder, "cut") / "ct.nii.gz"
    cut.write_bytes(cut.read_bytes()[:4000])
    other = small_case(folder, "other-frame") / "segmentations"
    combined = np.zeros((40, 40, 20), np.uint8)
    combined[20:30, 20:30, 5:10] = 1
    moved = nibabel.Nifti1Image(combined, np.diag([2.0, 2.0, 3.0, 1.0]) + np.eye(4, k=3) * 300)
    nibabel.save(moved, other.parent / "combined_labels.nii.gz")
    (other.parent / "labels.json").write_text('{"1": "liver"}')
    empty = small_case(folder, "empty") / "segmentations" / "spleen.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 40, 20), np.uint8), np.diag([2.0, 2.0, 3.0, 1.0])), empty)
    magnetic = small_case(folder, "mr") / "ct.nii.gz"
    signal_of = np.abs(np.asarray(nibabel.load(magnetic).dataobj).astype(np.int16) // 4 + 260)
    nibabel.save(nibabel.Nifti1Image(signal_of.astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0])), magnetic)
    small_case(folder, "shifted", shift=1024)
    unknown = small_case(folder, "unknown")
    nibabel.save(nibabel.Nifti1Image(9 * combined, np.diag([2.0, 2.0, 3.0, 1.0])), unknown / "combined_labels.nii.gz")
    (unknown / "labels.json").write_text('{"1": "liver"}')
    return {
        "cut": "ct.nii.gz",
        "other-frame": "combined_labels.nii.gz is in another frame than the CT",
        "empty": "segmentations/spleen.nii.gz has no voxel",
        "mr": "",
        "shifted": "1024",
        "unknown": "combined_labels.nii.gz has labels without a name: 9",
    }


def test_bad_cases_are_set_aside_with_one_line_each_and_the_rest_is_done(tmp_path, capsys):
    reasons = damaged(tmp_path / "in")
    assert main(["measure", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("measured 2 of 8 cases")
    aside = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert {row["case"] for row in aside} == set(reasons)
    for row in aside:
        assert "\n" not in row["reason"] and reasons[row["case"]] in row["reason"], row
        assert f"set aside: {row['case']}: {row['reason']}" in said
    assert [case.case for case in measured_in(tmp_path / "out")] == ["good", "last"]


@pytest.mark.parametrize("kind", ["a link to nothing", "a folder"])
def test_a_file_that_is_none_sets_its_case_aside_and_names_no_folder(tmp_path, kind):
    small_case(tmp_path / "in", "good")
    mask = small_case(tmp_path / "in", "bad") / "segmentations" / "spleen.nii.gz"
    mask.unlink()
    mask.mkdir() if kind == "a folder" else mask.symlink_to(tmp_path / "nothing")
    bad, good = measure_all(find_cases(tmp_path / "in"), tmp_path / "out")
    assert good.measurements is not None and bad.measurements is None and bad.key == ""
    assert bad.fault.startswith("segmentations/spleen.nii.gz cannot be read") and str(tmp_path) not in bad.fault


@pytest.mark.parametrize("left", [b"", b"{", b"\xff\xfe", b'{"case": "\xff"}', b'{"case": 3}', b"null"])
def test_a_damaged_result_is_measured_again(tmp_path, left):
    small_case(tmp_path / "in", "a")
    (first,) = measure_all(find_cases(tmp_path / "in"), tmp_path / "out")
    (tmp_path / "out" / "cases" / "a.json").write_bytes(left)
    assert measure_all(find_cases(tmp_path / "in"), tmp_path / "out") == [first]
    assert work.stored(tmp_path / "out" / "cases" / "a.json") == first


@pytest.mark.parametrize("said", ["by meta.json", "by a table", "by nothing"])
def test_a_case_with_an_inserted_lesion_is_of_the_same_patient(tmp_path, said):
    folder = small_case(tmp_path / "in", "a")
    if said == "by meta.json":
        (folder / "meta.json").write_text('{"patient": "P7"}')
    if said == "by a table":
        (tmp_path / "in" / "metadata.csv").write_text("id,patient\na,P7\n")
    (files,) = find_cases(tmp_path / "in")
    (changed,) = find_cases(insert_into(files, tmp_path / "new" / "b", "liver", "cyst", 9.0))
    assert read_case(changed, salt="s").patient == read_case(files, salt="s").patient
    assert read_case(changed, salt="s").patient == patient_group("a" if said == "by nothing" else "P7", "s")


def test_doctor_finds_what_measuring_refuses(tmp_path, capsys):
    for name in damaged(tmp_path):
        assert main(["doctor", str(tmp_path / name)]) == 2, name
        assert "fault" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "good")]) == 0


def test_what_is_measured_is_not_measured_again_and_what_changed_is(tmp_path):
    small_case(tmp_path / "in", "a"), small_case(tmp_path / "in", "b")
    first = measure_all(find_cases(tmp_path / "in"), tmp_path / "out")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cases").iterdir()}
    mask = tmp_path / "in" / "b" / "segmentations" / "spleen.nii.gz"
    image = nibabel.load(mask)
    nibabel.save(nibabel.Nifti1Image(np.roll(np.asarray(image.dataobj), 1, 1), image.affine), mask)
    second = measure_all(find_cases(tmp_path / "in"), tmp_path / "out")
    changed = {
        path.name for path in (tmp_path / "out" / "cases").iterdir() if path.stat().st_mtime_ns != times[path.name]
    }
    assert changed == {"b.json"}
    assert first[0] == second[0] and first[1].key != second[1].key


def test_another_version_of_the_definitions_measures_again(tmp_path, monkeypatch):
    small_case(tmp_path / "in", "a")
    (first,) = measure_all(find_cases(tmp_path / "in"), tmp_path / "out")
    monkeypatch.setattr(work, "DEFINITIONS", "another")
    (second,) = measure_all(find_cases(tmp_path / "in"), tmp_path / "out")
    assert first.key != second.key and first.measurements == second.measurements


def test_two_processes_give_what_one_gives(tmp_path):
    for i in range(4):
        small_case(tmp_path / "in", f"case {i}", hu=40 + 5 * i)
    cases = find_cases(tmp_path / "in")
    alone, two = measure_all(cases, tmp_path / "1"), measure_all(cases, tmp_path / "2", workers=2)
    assert alone == two
    assert results(tmp_path / "1") == results(tmp_path / "2")


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    for i in range(12):
        small_case(tmp_path / "in", f"case {i:02}", hu=40 + 2 * i)
    whole = measure_all(find_cases(tmp_path / "in"), tmp_path / "whole", salt="sea")
    command = [sys.executable, "-m", "tumorvqa", "measure", str(tmp_path / "in"), str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "salt").write_text("sea")
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not list((tmp_path / "out").glob("cases/*.json")) and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = results(tmp_path / "out")
    assert kept and all(kept[name] == results(tmp_path / "whole")[name] for name in kept if name.endswith(".json"))
    resumed = measure_all(find_cases(tmp_path / "in"), tmp_path / "out", salt="sea")
    assert resumed == whole


def test_a_case_that_is_gone_is_asked_no_more_and_a_damaged_result_is_named(tmp_path):
    cases = [find_cases(small_case(tmp_path / "in", name))[0] for name in "ab"]
    measure_all(cases, tmp_path / "out")
    measure_all(cases[:1], tmp_path / "out")
    assert [case.case for case in measured_in(tmp_path / "out")] == ["a"]
    (tmp_path / "out" / "cases" / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a.json is missing or damaged; measure again"):
        measured_in(tmp_path / "out")
    measure_all(cases[:1], tmp_path / "out")
    assert len(measured_in(tmp_path / "out")) == 1


def test_a_cap_of_memory_that_was_too_low_is_not_remembered(tmp_path):
    cases = find_cases(small_case(tmp_path / "in", "a"))
    (first,) = measure_all(cases, tmp_path / "out", memory_gb=1e-5)
    assert first.fault is not None and "the cap is 1e-05 GB" in first.fault
    (again,) = measure_all(cases, tmp_path / "out")
    assert again.measurements is not None


@pytest.mark.parametrize("command", ["doctor CASE", "show CASE --out page.html", "insert CASE other", "measure IN OUT"])
def test_every_command_that_reads_scans_can_be_given_more_memory(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = command.replace("CASE", str(small_case(tmp_path / "in", "a"))).replace("IN", "in").replace("OUT", "out")
    status = main([*words.split(), "--memory-gb", "0.00001"])
    said = capsys.readouterr()
    assert "the cap is 1e-05 GB" in said.out + said.err and status == (0 if "measure" in command else 2)


def test_an_empty_salt_and_no_process_are_refused(tmp_path, capsys):
    small_case(tmp_path / "in", "a")
    command = ["measure", str(tmp_path / "in"), str(tmp_path / "out")]
    assert main([*command, "--workers", "0"]) == 2
    (tmp_path / "out" / "salt").write_text("")
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "--workers is 0" in said and "salt is empty" in said


def dies(item: int, marks: Path, always: bool) -> int:
    """Takes its process down for item 3: always, or the first time."""
    if item == 3 and (always or not (marks / "died").exists()):
        (marks / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * item


@pytest.mark.parametrize("always", [True, False])
def test_an_item_whose_process_dies_is_tried_alone_once_more(tmp_path, always):
    done = in_processes(2)(partial(dies, marks=tmp_path, always=always), range(6), lambda item: -item)
    assert sorted(done) == ([-3, 0, 10, 20, 40, 50] if always else [0, 10, 20, 30, 40, 50])


def test_without_processes_items_come_in_order():
    assert list(here(lambda item: 10 * item, range(3), abs)) == [0, 10, 20]


def test_two_cases_of_one_name_are_refused(tmp_path):
    (case,) = find_cases(small_case(tmp_path, "a"))
    with pytest.raises(ValueError, match="two cases are called 'a'"):
        measure_all([case, case], tmp_path / "out")


def test_the_salt_of_a_set_is_private_and_in_no_output(tmp_path):
    small_case(tmp_path / "in", "a")
    assert main(["measure", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    salt = tmp_path / "out" / "salt"
    assert salt.stat().st_mode & 0o777 == 0o600
    others = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file() and path != salt]
    assert others and not any(salt.read_text() in text for text in others)


def test_nothing_of_a_header_or_table_that_names_a_person_reaches_an_output(tmp_path, capsys):
    folder = small_case(tmp_path / "in", "a")
    image = nibabel.load(folder / "ct.nii.gz")
    for field in ("descrip", "db_name", "aux_file", "intent_name"):
        image.header[field] = b"DOE^JANE"[: 8 if field != "descrip" else 80]
    nibabel.save(image, folder / "ct.nii.gz")
    row = {"patient": "DOE^JANE 1970-01-01", "name": "DOE^JANE", "birth": "1970-01-01", "sex": "f", "age": "54"}
    (folder / "meta.json").write_text(json.dumps(row))
    assert main(["measure", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert main(["doctor", str(folder)]) == 0
    assert main(["show", str(folder), "--out", str(tmp_path / "out" / "case.html")]) == 0
    said = capsys.readouterr()
    texts = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    texts += [gzip.decompress(text) for text in texts if text[:2] == b"\x1f\x8b"]
    for secret in ("DOE", "JANE", "1970"):
        assert secret not in said.out + said.err
        assert not any(secret.encode() in text for text in texts)
    assert measured_in(tmp_path / "out")[0].meta.age == 54
