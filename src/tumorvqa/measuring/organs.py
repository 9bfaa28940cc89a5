"""Organs, vessels and parts: volume, HU and where the scan cuts them off."""

import cc3d
import numpy as np
from scipy import ndimage

from tumorvqa.measurements import Measurement, Organ
from tumorvqa.measuring import gaps, surface, values
from tumorvqa.measuring.lesions import Component
from tumorvqa.scans import EMPTY, Frame, Region, Scan
from tumorvqa.structures import HOSTS, STRUCTURES

TOUCHING = np.ones((3, 3, 3))


def absent(name: str, status: str) -> Organ:
    """What is known of a structure of which there is no voxel, or no usable mask."""
    volume = Measurement(None, "cm^3", 0.0, status)  # type: ignore[arg-type]
    hu = Measurement(None, "HU", 0.0, status)  # type: ignore[arg-type]
    return Organ(name, volume, hu, hu, hu, fragments=0)


def organ(scan: Scan, name: str, lesions: dict[str, list[Component]]) -> Organ:
    """Volume with lesions, HU without. A lesion that touches its organ belongs to it even where the organ's mask leaves
    it out, as a label map must; one that lies apart does not.
    """
    region = scan.regions[name]
    host = STRUCTURES[name].host or next((host for host, sides in HOSTS.items() if name in sides), None)
    own = [component.region for component in lesions.get(host or "", [])]
    if not region.count:
        return absent(name, "empty")
    whole = with_lesions(region, own, scan.frame, scan.regions, name) if STRUCTURES[name].kind == "organ" else region
    tissue = whole.mask.copy()
    for part in own:
        tissue &= ~surface.within(part, whole.box)
    faces = surface.sides(whole.box, scan.frame.shape)
    hu = values.hounsfield(scan.hu[surface.slices(whole.box)], tissue)
    fragments = cc3d.connected_components(np.asfortranarray(whole.mask), connectivity=26, return_N=True)[1]
    volume = values.volume(whole.mask, scan.frame.voxel_mm3, "truncated" if faces else "ok")
    return Organ(name, volume, hu.mean, hu.sd, hu.median, faces, int(fragments), whole.box)


def with_lesions(region: Region, lesions: list[Region], frame: Frame, regions: dict[str, Region], name: str) -> Region:
    """The organ and the lesions that overlap or touch it (if two organs can have them, the one they mostly lie in)."""
    sides = next((sides for sides in HOSTS.values() if name in sides), (name,))
    pairs = {side: regions[side] for side in sides if regions.get(side, EMPTY).count}
    mine = []
    for part in lesions:
        box = surface.around(part.box, frame, max(frame.spacing))
        there = surface.within(region, box)
        if not (ndimage.binary_dilation(surface.within(part, box), TOUCHING) & there).any():
            continue
        where = gaps.places(part, pairs, frame)
        if max(where, key=lambda side: where[side]) == name:
            mine.append(part)
    outside = [part for part in mine if not surface.within(region, part.box)[part.mask].all()]
    if not outside:
        return region
    box = surface.hull(region.box, *(part.box for part in outside))
    mask = surface.within(region, box)
    for part in outside:
        mask |= surface.within(part, box)
    return Region(box, mask)
