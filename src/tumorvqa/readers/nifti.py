"""NIfTI files read with distrust: nothing is allocated before the header's claims fit, and no text of it is kept."""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from tumorvqa.readers.frames import corners
from tumorvqa.scans import CaseFault

CHUNK = 1 << 24  # bytes read at once
LIMITS = np.iinfo(np.int16)
FARTHEST = 1 << 30  # byte at which voxels may begin


@dataclass(frozen=True)
class Header:
    """What a file says of its voxels. `name` is how errors call it; `form` is where the affine comes from, and
    `forms_apart` the distance in millimetres at the farthest corner between sform and qform where both are set.
    """

    path: Path
    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype
    affine: NDArray[np.float64]
    slope: float
    intercept: float
    offset: int
    form: str
    forms_apart: float

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    @property
    def raw_bytes(self) -> int:
        return self.voxels * self.dtype.itemsize

    @property
    def scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)


def opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.name.endswith(".gz") else path.open("rb")


def read_header(path: Path, name: str) -> Header:
    """Header of a .nii or .nii.gz; CaseFault if it is none, or says something that no CT or mask has."""
    try:
        with opened(path) as file:
            start = file.read(540)
    except (OSError, EOFError, zlib.error):
        raise CaseFault(f"{name} cannot be read: missing, damaged or not gzip. Copy it again.") from None
    header = None
    for kind, length in ((nib.Nifti1Header, 348), (nib.Nifti2Header, 540)):
        if header is None and kind.may_contain_header(start):
            header = kind(start[:length], check=False)
    if header is None or bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise CaseFault(f"{name} is not a NIfTI file (.nii or .nii.gz).")
    ndim, sizes = int(header["dim"][0]), [int(n) for n in header["dim"][1:]]
    sizes = sizes[:ndim]
    if ndim < 3 or min(sizes) < 1 or math.prod(sizes[3:]) != 1:
        raise CaseFault(f"{name} has the size {' x '.join(map(str, sizes))}; three positive sizes are needed.")
    try:
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        affine, form, apart = placed(header, sizes)
    except (HeaderDataError, ValueError, KeyError):
        raise CaseFault(f"{name} has a damaged header: its type, scaling or position makes no sense.") from None
    if dtype.fields or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise CaseFault(f"{name} holds colors or complex numbers; one real number a voxel is needed.")
    if not spans(affine[:3, :3]):
        raise CaseFault(f"{name} has an affine that is not finite or maps voxels onto a plane.")
    scale = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
    x, y, z = sizes[:3]
    first, offset = header.single_vox_offset, float(header["vox_offset"]) or header.single_vox_offset
    if not first <= offset < FARTHEST:  # also if it is no number
        raise CaseFault(
            f"{name} has a damaged header: its voxels cannot begin at byte {offset:g}, but from {first} on."
        )
    return Header(path, name, (x, y, z), dtype, affine, *scale, int(offset), form, apart)


def spans(axes: NDArray[np.float64]) -> bool:
    """Whether three axes of voxels, of 1 micrometre to 1 metre, point in three directions."""
    lengths = np.linalg.norm(axes, axis=0)
    if not ((lengths > 1e-3) & (lengths < 1e3)).all():
        return False
    return abs(np.linalg.det(axes / lengths)) > 1e-2


def placed(header: nib.Nifti1Header, sizes: list[int]) -> tuple[NDArray[np.float64], str, float]:
    """The affine (sform if its code is set, else qform, else spacing alone), which it is, how far apart both lie."""
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    apart = 0.0
    if sform is not None and qform is not None:
        apart = float(np.linalg.norm(((sform - qform) @ corners(tuple(sizes[:3])))[:3], axis=0).max())
    form = "sform" if sform is not None else "qform" if qform is not None else "none"
    return np.asarray(header.get_best_affine(), float), form, apart


def read_voxels(header: Header) -> NDArray:
    """Voxels as stored, without slope and intercept; the checksum of a .gz is verified."""
    raw = np.empty(header.raw_bytes, np.uint8)
    got = 0
    try:
        with opened(header.path) as file:
            file.seek(header.offset)
            while got < raw.size and (part := file.read(min(CHUNK, raw.size - got))):
                raw[got : got + len(part)] = np.frombuffer(part, np.uint8)
                got += len(part)
            file.read(1)
    except (OSError, EOFError, zlib.error):
        raise CaseFault(f"{header.name} is damaged: its compressed data are wrong or end early.") from None
    if got < raw.size:
        raise CaseFault(f"{header.name} is cut off: {got} of {raw.size} bytes of voxels are there. Copy it again.")
    voxels = raw.view(header.dtype).reshape(header.shape, order="F")
    return voxels if header.dtype.isnative else voxels.astype(header.dtype.newbyteorder("="))


def read_hu(header: Header) -> NDArray[np.int16]:
    """HU = round(slope raw + intercept) in int16; CaseFault where a value is none."""
    raw = read_voxels(header)
    if raw.dtype == np.int16 and not header.scaled:
        return raw
    hu = np.empty(header.shape, np.int16, order="F")
    for z in range(header.shape[2]):  # a plane at a time, so that no copy in float of all voxels is made
        plane = raw[..., z] * np.float64(header.slope) + header.intercept
        if not np.isfinite(plane).all():
            raise CaseFault(f"{header.name} holds values that are no numbers (NaN or infinite).")
        plane = np.rint(plane)
        if plane.min() < LIMITS.min or plane.max() > LIMITS.max:
            worst = plane.max() if plane.max() > LIMITS.max else plane.min()
            raise CaseFault(f"{header.name} holds values up to {worst:.6g}, which are no HU.")
        hu[..., z] = plane
    return hu


def read_mask(header: Header) -> tuple[NDArray[np.bool_], bool]:
    """Where slope raw + intercept > 0.5, and whether it was binary to begin with."""
    raw = read_voxels(header)
    mask, binary = np.empty(header.shape, bool, order="F"), True
    for z in range(header.shape[2]):
        plane = raw[..., z] * np.float64(header.slope) + header.intercept if header.scaled else raw[..., z]
        if plane.dtype.kind == "f" and not np.isfinite(plane).all():
            raise CaseFault(f"{header.name} holds values that are no numbers (NaN or infinite).")
        mask[..., z] = plane > 0.5 if plane.dtype.kind == "f" else plane > 0
        binary = binary and bool((plane == mask[..., z]).all())
    return mask, binary


def read_labels(header: Header) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Labels of a map, whole numbers from 0 to 65535."""
    raw = read_voxels(header)
    if raw.dtype in (np.uint8, np.uint16) and not header.scaled:
        return raw
    labels = np.empty(header.shape, np.uint16, order="F")
    for z in range(header.shape[2]):
        plane = raw[..., z] * np.float64(header.slope) + header.intercept
        whole = np.rint(plane)
        if not (np.abs(plane - whole) < 1e-3).all() or whole.min() < 0 or whole.max() > np.iinfo(np.uint16).max:
            raise CaseFault(f"{header.name} is no label map: it holds fractions, negative numbers or some above 65535.")
        labels[..., z] = whole
    return labels
