"""The scripts of bench/ about tumorvqa, on the smallest sizes: they run, and write the rows they claim."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def run(script: str, *arguments: str, out: Path) -> dict:
    command = [sys.executable, str(BENCH / script), *arguments, "--out", str(out)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())


def test_speed_measures_a_case_questions_and_scores(tmp_path):
    found = run("tumorvqa.py", "--small", out=tmp_path / "speed.json")
    assert found["case"]["organs"] == 25 and found["case"]["peak_gb"] > 0
    assert found["asking"]["questions"] > 1000 and found["scoring"]["answers"] == 500


def test_errors_of_two_phantoms_are_small(tmp_path):
    found = run("phantom_errors.py", "--count", "2", out=tmp_path / "errors.json")
    rows = {(row["quantity"], row["size"]): row for row in found["rows"]}
    assert rows["number of lesions of an organ", "all"]["worst"] == 0
    assert rows["volume of organs, %", "organ"]["rms"] < 10
    assert rows["long axis, mm", "all"]["rms"] < 3
