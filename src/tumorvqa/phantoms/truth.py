"""What is true of a phantom, from its solids alone: closed forms where there are any."""

import numpy as np

from tumorvqa.measurements import Lesion, Measurement, Measurements, Organ, Status, Unit
from tumorvqa.measuring.surface import SIDES
from tumorvqa.phantoms.phantom import Growth, Phantom, Piece, contact
from tumorvqa.phantoms.render import axes
from tumorvqa.phantoms.shapes import Ellipsoid, Solid, Tube, gap
from tumorvqa.structures import HOSTS, PLACES, STRUCTURES


def truth(phantom: Phantom) -> Measurements:
    """Volumes, diameters, gaps and angles without any voxel; `faces` and "truncated" as masks on the grid say."""
    frame = phantom.frame
    names = [*phantom.solids, *PLACES["liver"], *PLACES["pancreas"]]
    return Measurements(
        phantom.case,
        phantom.patient,
        "phantom",
        "analytic",
        frame.shape,
        tuple(float(step) for step in frame.spacing),  # type: ignore[arg-type]
        phantom.meta,
        {name: organ(phantom, name) for name in names},
        tuple(lesion for host in HOSTS for lesion in lesions(phantom, host)),
        phantom.annotated,
        {},
        "phantom",
    )


def known(value: float | None, unit: Unit, status: Status = "ok") -> Measurement:
    return Measurement(None if value is None else round(float(value), 6), unit, 0.0, status, "analytic")


def host_of(name: str) -> str:
    return STRUCTURES[name].host or name


def organ(phantom: Phantom, name: str) -> Organ:
    """Lesions are part of the volume and not of the HU."""
    faces = touched(phantom, name)
    host = host_of(name)
    hu = phantom.hu[host]
    return Organ(
        name,
        known(None, "cm^3", "truncated") if faces else known(volume(phantom, name) / 1000, "cm^3"),
        known(hu, "HU"),
        known(phantom.noise, "HU"),
        known(hu, "HU"),
        faces,
    )


def volume(phantom: Phantom, name: str) -> float:
    """mm^3."""
    if name in phantom.segments:
        return phantom.segments[name].volume
    grown = [piece.grown for piece in phantom.pieces]
    if name in PLACES["pancreas"]:
        own = phantom.pancreas.span_volume(PLACES["pancreas"].index(name))
        return own + sum(part.get(name, 0.0) for part in grown)
    own = phantom.solids[name].volume
    return own + (sum(sum(part.values()) for part in grown) if name == "pancreas" else 0.0)


def touched(phantom: Phantom, name: str) -> tuple[str, ...]:
    """The sides of the scan whose outermost voxels have their centre in the structure."""
    solid, lines = phantom.solids[host_of(name)], axes(phantom)
    low, high = solid.bounds
    faces = []
    for axis, sides in enumerate(SIDES):
        for side, end in zip(sides, (0, -1), strict=True):
            at = lines[axis][end]
            if not low[axis] <= at <= high[axis]:
                continue
            x, y, z = np.meshgrid(
                *(line if other != axis else np.array([at]) for other, line in enumerate(lines)),
                indexing="ij",
                sparse=True,
            )
            inside = solid.inside(x, y, z)
            if host_of(name) != name:
                inside = inside & phantom.part(name, x, y, z)
            if inside.any():
                faces.append(side)
    return tuple(faces)


def lesions(phantom: Phantom, host: str) -> list[Lesion]:
    """Those that someone drew, the largest first."""
    found = [
        (lesion, piece)
        for lesion, piece in zip(phantom.lesions, phantom.pieces, strict=True)
        if lesion.organ == host and f"{host}_{lesion.kind}" in phantom.annotated
    ]
    found.sort(key=lambda row: -row[1].volume)
    return [described(phantom, lesion, piece, rank) for rank, (lesion, piece) in enumerate(found, start=1)]


def described(phantom: Phantom, lesion: Growth, piece: Piece, rank: int) -> Lesion:
    long_axis, short_axis = lesion.solid.axial_axes
    heights = axes(phantom)[2]
    return Lesion(
        lesion.organ,
        lesion.kind,
        rank,
        known(piece.volume / 1000, "cm^3"),
        known(long_axis, "mm"),
        known(short_axis, "mm"),
        known(int(np.abs(heights - lesion.solid.center[2]).argmin()), "slice"),
        known(lesion.hu, "HU"),
        piece.centroid,
        piece.places,
        {
            name: known(max(between(lesion.solid, solid), 0.0), "mm")
            for name, solid in phantom.solids.items()
            if STRUCTURES[name].kind == "organ" and name not in HOSTS[lesion.organ]
        },
        {name: known(contact(lesion.solid, vessel), "degrees") for name, vessel in phantom.vessels.items()},
    )


def between(tumor: Ellipsoid, solid: Solid) -> float:
    """mm from a lesion to another organ; through the organ's axis if it is a tube, since that is exact."""
    return gap(solid, tumor) if isinstance(solid, Tube) else gap(tumor, solid)
