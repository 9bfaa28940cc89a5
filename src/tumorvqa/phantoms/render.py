"""A phantom's CT: tissues, the blur of a scanner, correlated noise, and the exact masks."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tumorvqa.measuring.surface import slices
from tumorvqa.phantoms.phantom import Phantom
from tumorvqa.phantoms.shapes import Bools, Ellipsoid, Floats, Solid, Tube
from tumorvqa.scans import Box, Region, Scan
from tumorvqa.structures import KINDS, PLACES

PSF_MM = 0.85  # standard deviation of the blur
CORRELATION = 0.45  # of the noise, in voxels
LESION_NOISE = 0.4  # lesions vary less than organs: whether one is as bright as its organ can be told
AIR, FAT, BELLY, BONE = -1000.0, -105.0, -65.0, 190.0
BODY = (184.0, 142.0)  # mm, half axes of a superellipse of power 3 in X and Y
SKIN = 0.93  # where the fat under the skin begins, as a share of the body
SPINE = Tube(((0.0, -98.0, -1000.0), (0.0, -98.0, 1000.0)), 21.0)


def axes(phantom: Phantom) -> list[Floats]:
    """Positions of the voxels' centres along X, Y and Z; the frame of a phantom is straight and RAS."""
    affine, shape = phantom.frame.affine, phantom.frame.shape
    return [affine[axis, 3] + affine[axis, axis] * np.arange(shape[axis]) for axis in range(3)]


def box_of(solid: Solid, lines: list[Floats]) -> Box:
    """The voxels that a solid can reach."""
    low, high = solid.bounds
    (i, m), (j, n), (k, p) = (
        (int(np.searchsorted(line, a)), int(np.searchsorted(line, b, "right")))
        for line, a, b in zip(lines, low, high, strict=True)
    )
    return (i, m), (j, n), (k, p)


def open_grid(lines: list[Floats], box: Box) -> tuple[Floats, Floats, Floats]:
    x, y, z = (line[slice(*ends)] for line, ends in zip(lines, box, strict=True))
    return x[:, None, None], y[None, :, None], z[None, None, :]


def spread(solid: Solid, lines: list[Floats]) -> tuple[Box, Bools]:
    """A solid's voxels in the box it reaches; a tube's span by span, since its box is mostly empty."""
    box = box_of(solid, lines)
    if isinstance(solid, Ellipsoid) or len(solid.points) == 2:
        return box, solid.inside(*open_grid(lines, box))
    (i, m), (j, n), (k, p) = box
    mask = np.zeros((m - i, n - j, p - k), bool)
    for ends in zip(solid.points[:-1], solid.points[1:], strict=True):
        part, inside = spread(Tube(ends, solid.radius), lines)
        (a, b), (c, d), (e, f) = part
        mask[a - i : b - i, c - j : d - j, e - k : f - k] |= inside
    return box, mask


def render(phantom: Phantom) -> Scan:
    """The CT and every annotated mask; a voxel belongs to what its centre lies in.

    After blur and noise each tissue's voxels are scaled to the tissue's mean and standard deviation: what the masks
    say of HU is what the phantom says, so that a lesion can have the very density of its organ.
    """
    lines = axes(phantom)
    x, y, z = open_grid(lines, tuple((0, size) for size in phantom.frame.shape))  # type: ignore[arg-type]
    depth = np.abs(x[..., 0] / BODY[0]) ** 3 + np.abs(y[..., 0] / BODY[1]) ** 3
    section = np.where(depth > 1, AIR, np.where(depth > SKIN**3, FAT, BELLY)).astype(np.float32)
    section[SPINE.inside(x[..., 0], y[..., 0], z[0, 0, 0])] = BONE
    hu = np.repeat(section[:, :, None], phantom.frame.shape[2], axis=2)
    tissue = np.zeros(phantom.frame.shape, np.uint8)  # 0 is what is calibrated by nothing
    targets, spreads = [0.0], [0.0]

    def paint(box: Box, mask: Bools, value: float, noise: float) -> None:
        hu[slices(box)][mask] = value
        tissue[slices(box)][mask] = len(targets)
        targets.append(value)
        spreads.append(noise)

    masks: dict[str, NDArray[np.bool_]] = {}
    regions: dict[str, Region] = {}
    blood = np.zeros(phantom.frame.shape, bool)
    for name, solid in phantom.solids.items():
        box, mask = spread(solid, lines)
        paint(box, mask, phantom.hu[name], phantom.noise)
        if name in phantom.vessels:
            blood[slices(box)] |= mask
        regions[name] = Region.of(mask, (box[0][0], box[1][0], box[2][0]))
    drawn = {f"{organ}_{kind}" for organ, kinds in KINDS.items() for kind in kinds} & set(phantom.annotated)
    for lesion in phantom.lesions:
        box, mask = spread(lesion.solid, lines)
        mask &= ~blood[slices(box)]
        paint(box, mask, lesion.hu, LESION_NOISE * phantom.noise)
        name = f"{lesion.organ}_{lesion.kind}"
        if name in drawn:
            masks.setdefault(name, np.zeros(phantom.frame.shape, bool))[slices(box)] |= mask
        if lesion.organ == "pancreas":  # the only one that lesions may reach out of
            masks.setdefault("pancreas", whole(regions["pancreas"], phantom))[slices(box)] |= mask
    regions |= {name: Region.of(mask) for name, mask in masks.items()}
    regions |= {name: regions.get(name, Region.of(np.zeros((1, 1, 1), bool))) for name in sorted(drawn)}
    for organ in ("liver", "pancreas"):
        (i, _), (j, _), (k, _) = box = regions[organ].box
        for name in PLACES[organ]:
            part = regions[organ].mask & phantom.part(name, *open_grid(lines, box))
            regions[name] = Region.of(part, (i, j, k))
    return Scan(
        phantom.case,
        phantom.patient,
        "phantom",
        phantom.frame,
        calibrated(scanned(hu, phantom), tissue, np.array(targets), np.array(spreads)),
        regions,
        phantom.meta,
        provenance="phantom",
    )


def whole(region: Region, phantom: Phantom) -> Bools:
    mask = np.zeros(phantom.frame.shape, bool)
    mask[slices(region.box)] = region.mask
    return mask


def scanned(hu: NDArray[np.float32], phantom: Phantom) -> NDArray[np.float32]:
    """With blur and with noise that neighbours share."""
    noise = np.random.default_rng([phantom.seed, 1]).standard_normal(hu.shape, np.float32)
    noise = gaussian_filter(noise, CORRELATION, truncate=2.5)
    noise *= phantom.noise / noise.std()
    blurred: NDArray[np.float32] = gaussian_filter(
        hu, [PSF_MM / step for step in phantom.frame.spacing], truncate=2.5, mode="nearest"
    )
    blurred += noise
    return blurred


def calibrated(
    hu: NDArray[np.float32], tissue: NDArray[np.uint8], targets: Floats, spreads: Floats
) -> NDArray[np.int16]:
    """Each tissue's voxels scaled and shifted to its mean and standard deviation; 0 as it is."""
    labels = tissue.ravel()
    count = np.maximum(np.bincount(labels, minlength=len(targets)), 1)
    mean = np.bincount(labels, hu.ravel(), len(targets)) / count
    sd = np.sqrt(np.maximum(np.bincount(labels, hu.ravel().astype(np.float64) ** 2, len(targets)) / count - mean**2, 0))
    scale = np.where(sd > 0, spreads / np.where(sd > 0, sd, 1), 1.0)
    shift = targets - mean * scale
    scale[0], shift[0] = 1, 0
    steady = hu * scale[tissue].astype(np.float32) + shift[tissue].astype(np.float32)
    return np.clip(np.rint(steady), -1024, 3071).astype(np.int16)
