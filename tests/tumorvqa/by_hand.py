"""Cases made by hand, for tests of what is asked and scored."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np

from tumorvqa.measurements import Lesion, Measurement, Measurements, Organ
from tumorvqa.scans import Meta
from tumorvqa.structures import LESIONS, PLACES

BOX = ((10, 20), (10, 20), (10, 20))
VOLUMES = {
    "liver": 1500,
    "spleen": 200,
    "pancreas": 60,
    "kidney_left": 150,
    "kidney_right": 160,
    "colon": 300,
    "stomach": 200,
}
HU = {"liver": 60, "spleen": 50, "pancreas": 40, "kidney_left": 30, "kidney_right": 30, "colon": 20}


def organ(name: str, volume: float, hu: float = 50, status: str = "ok") -> Organ:
    made = {"uncertainty": 0.002 * volume, "status": status}
    return Organ(
        name,
        Measurement(volume, "cm^3", **made),
        Measurement(hu, "HU", 0.2),
        Measurement(12, "HU"),
        Measurement(hu, "HU"),
        box=BOX,
    )


def lesion(host: str, kind: str = "lesion", rank: int = 1, mm: float = 30, hu: float = 20, **changes) -> Lesion:
    """A ball of a diameter; `place` where it lies, contacts and gaps as plain numbers."""
    place = changes.pop("place", PLACES.get(host, ("",))[0])
    contacts = {name: Measurement(value, "degrees", 10) for name, value in changes.pop("contacts", {}).items()}
    gaps = {name: Measurement(value, "mm", 0.5) for name, value in changes.pop("gaps", {}).items()}
    volume = 3.14159265 / 6 * (mm / 10) ** 3
    made = Lesion(
        host,
        kind,
        rank,
        Measurement(volume, "cm^3", 0.01 * volume),
        Measurement(mm, "mm", 0.3),
        Measurement(mm, "mm", 0.3),
        Measurement(15, "slice", 0.3),
        Measurement(hu, "HU", 0.5),
        (0.0, 0.0, 0.0),
        {place: 1.0} if place else {},
        gaps,
        contacts,
        BOX,
    )
    return replace(made, **changes)


def case(name: str = "a", *lesions: Lesion, contrast: str | None = "plain", **changes) -> Measurements:
    """A case in which every lesion class was looked for; `volumes` and `hus` change those of organs."""
    volumes = VOLUMES | changes.pop("volumes", {})
    hus = HU | changes.pop("hus", {})
    organs = {key: organ(key, volume, hus.get(key, 50)) for key, volume in volumes.items()}
    parts = {**dict.fromkeys(PLACES["liver"], 150.0), **dict.fromkeys(PLACES["pancreas"], 20.0)}
    vessels = ("aorta", "inferior_vena_cava", "portal_vein", "superior_mesenteric_artery", "celiac_artery")
    for key, volume in (parts | dict.fromkeys(vessels, 20.0)).items():
        organs.setdefault(key, organ(key, volume))
    made = Measurements(
        name,
        f"patient of {name}",
        "by hand",
        "masks",
        (100, 100, 50),
        (1.0, 1.0, 2.0),
        Meta(contrast=contrast),
        organs,
        lesions,
        tuple(LESIONS),
        {},
    )
    return replace(made, **changes)


def small_case(folder: Path, name: str = "a", hu: int = 50, shift: int = 0, liver: slice = slice(8, 30)) -> Path:
    """A box of a body in air with a liver, a spleen and a lesion, as an AbdomenAtlas case of 40 x 40 x 20 voxels."""
    ct = np.full((40, 40, 20), -1000, np.int16)
    ct[4:36, 4:36] = -90
    masks = {key: np.zeros(ct.shape, np.uint8) for key in ("liver", "spleen", "liver_lesion")}
    masks["liver"][20:34, liver, 4:16] = 1
    masks["spleen"][6:12, 10:24, 6:14] = 1
    masks["liver_lesion"][24:28, 12:16, 8:11] = 1
    for key, value in {"liver": hu, "spleen": 45, "liver_lesion": 10}.items():
        ct[masks[key] > 0] = value
    ct += np.random.default_rng(0).normal(0, 8, ct.shape).astype(np.int16) + np.int16(shift)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    (folder / name / "segmentations").mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(ct, affine), folder / name / "ct.nii.gz")
    for key, mask in masks.items():
        nibabel.save(nibabel.Nifti1Image(mask, affine), folder / name / "segmentations" / f"{key}.nii.gz")
    return folder / name
