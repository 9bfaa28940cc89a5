"""Lesions: connected components of lesion masks, each measured."""

from typing import NamedTuple

import cc3d
import numpy as np
from scipy import ndimage

from tumorvqa.measurements import Lesion, Measurement, Status
from tumorvqa.measuring import contact, diameter, gaps, surface, values
from tumorvqa.scans import EMPTY, Frame, Region, Scan
from tumorvqa.structures import HOSTS, KINDS, PLACES, STRUCTURES

SMALLEST = 10.0  # mm^3
THINNEST = 3.0  # mm; what an opening with a ball of this diameter erases is not kept
GENERIC = "lesion"


class Component(NamedTuple):
    kind: str
    region: Region


def components(scan: Scan, host: str) -> list[Component]:
    """26-connected components of every lesion mask of an organ; two lesions that touch are one.

    A voxel of several classes is of the first in the order of structures.KINDS, the generic class last; what is left of
    a component may be several. Of the generic mask a component that typed ones cover by more than half is the same
    lesion and is left out.
    """
    masks = {kind: scan.regions.get(f"{host}_{kind}", EMPTY) for kind in KINDS[host]}
    masks = {kind: region for kind, region in masks.items() if region.count}
    found: list[Component] = []
    before: list[Region] = []
    for kind in sorted(masks, key=lambda kind: kind == GENERIC):
        for part in pieces(masks[kind]):
            taken = np.zeros_like(part.mask)
            for region in before:
                taken |= surface.within(region, part.box)
            taken &= part.mask
            if kind == GENERIC and 2 * np.count_nonzero(taken) > part.count:
                continue
            x, y, z = (start for start, _ in part.box)
            found += [Component(kind, rest) for rest in pieces(Region.of(part.mask & ~taken, (x, y, z)))]
        before.append(masks[kind])
    return found


def pieces(region: Region) -> list[Region]:
    """26-connected components."""
    if not region.count:
        return []
    labels = cc3d.connected_components(np.asfortranarray(region.mask), connectivity=26)
    found = []
    for k, box in enumerate(ndimage.find_objects(labels), start=1):
        x, y, z = ((part.start + start, part.stop + start) for part, (start, _) in zip(box, region.box, strict=True))
        found.append(Region((x, y, z), labels[box] == k))
    return found


def kept(region: Region, frame: Frame) -> bool:
    """At least 10 mm^3, and not erased by an opening with a ball of 3 mm (nothing is, where voxels are larger)."""
    if region.count * frame.voxel_mm3 < SMALLEST:
        return False
    return bool(ndimage.binary_erosion(np.pad(region.mask, 1), surface.ball(THINNEST / 2, frame)).any())


def measured(scan: Scan, host: str, found: list[Component]) -> list[Lesion]:
    """The lesions of an organ that are kept, largest first."""
    there = [component for component in found if kept(component.region, scan.frame)]
    there.sort(key=lambda component: (-component.region.count, component.kind, component.region.box[::-1]))
    organs = {
        name: region
        for name, region in scan.regions.items()
        if STRUCTURES[name].kind == "organ" and name not in HOSTS[host] and region.count
    }
    parts = {name: scan.regions[name] for name in PLACES.get(host, ()) if name in scan.regions}
    vessels = {name: region for name, region in scan.regions.items() if name in contact.VESSELS and region.count}
    return [
        lesion(scan, host, component, rank, organs, parts, vessels) for rank, component in enumerate(there, start=1)
    ]


def lesion(
    scan: Scan,
    host: str,
    component: Component,
    rank: int,
    organs: dict[str, Region],
    parts: dict[str, Region],
    vessels: dict[str, Region],
) -> Lesion:
    region, frame = component.region, scan.frame
    status: Status = "truncated" if surface.sides(region.box, frame.shape) else "ok"
    axes = diameter.axes(region, frame)
    window = surface.around(region.box, frame, max(frame.spacing))
    centre = np.argwhere(region.mask).mean(axis=0) + [start for start, _ in region.box]
    x, y, z = (frame.affine[:3, :3] @ centre + frame.affine[:3, 3]).tolist()
    return Lesion(
        organ=host,
        kind=component.kind,
        rank=rank,
        volume=values.volume(region.mask, frame.voxel_mm3, status),
        long_axis=Measurement(axes.long, "mm", axes.long_error, status, "RECIST"),
        short_axis=Measurement(axes.short, "mm", axes.short_error, status, "RECIST"),
        slice=Measurement(axes.slice, "slice", axes.slice_error, "ok", "of the long axis"),
        hu=values.hounsfield(scan.hu[surface.slices(window)], surface.within(region, window)).mean,
        centroid=(x, y, z),
        places=gaps.places(region, parts, frame),
        gaps=gaps.gaps(region, organs, frame),
        contacts={name: contact.contact(region, vessel, frame) for name, vessel in vessels.items()},
        box=region.box,
    )
