"""A phantom as files, in the layout of AbdomenAtlas: a CT and a mask per structure, and beside them the truth."""

import gzip
import os
import shutil
from pathlib import Path

import msgspec
import nibabel
import numpy as np
from numpy.typing import NDArray

from dnt.files import write_json
from tumorvqa.phantoms.phantom import Phantom
from tumorvqa.phantoms.render import cut, render
from tumorvqa.phantoms.truth import truth


def write(phantom: Phantom, folder: str | Path) -> Path:
    """`folder`/<case>/ct.nii.gz, segmentations/<structure>.nii.gz (0 and 1), truth.json (the analytic Measurements) and
    meta.json; whole or not at all. The axes of the files run as `phantom.turned` says. Returns <case>'s folder.
    """
    scan = render(phantom)
    target = Path(folder) / phantom.case
    building = target.with_name(f".{phantom.case}.{os.getpid()}")
    (building / "segmentations").mkdir(parents=True, exist_ok=True)
    save(scan.hu, phantom, building / "ct.nii.gz")
    for name, region in scan.regions.items():
        mask = np.zeros(phantom.frame.shape, np.uint8)
        mask[cut(region.box)] = region.mask
        save(mask, phantom, building / "segmentations" / f"{name}.nii.gz")
    (building / "truth.json").write_bytes(msgspec.json.format(msgspec.json.encode(truth(phantom)), indent=1))
    write_json(
        building / "meta.json",
        {
            "patient": phantom.patient,
            "source": scan.source,
            "provenance": scan.provenance,
            "sex": phantom.meta.sex,
            "age": phantom.meta.age,
            "contrast": phantom.meta.contrast,
            "scanner": phantom.meta.scanner,
        },
    )
    if target.exists():
        shutil.rmtree(target)
    building.rename(target)
    return target


def save(values: NDArray[np.int16] | NDArray[np.uint8], phantom: Phantom, path: Path) -> None:
    """The same bytes for the same values, packed lightly: speed counts more than size."""
    image = nibabel.Nifti1Image(values, phantom.frame.affine)
    image.set_qform(phantom.frame.affine, 1)
    image.set_sform(phantom.frame.affine, 1)
    turned = image.as_reoriented(np.array(phantom.turned, float))
    path.write_bytes(gzip.compress(turned.to_bytes(), 1, mtime=0))
