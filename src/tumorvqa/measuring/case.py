"""All that is measured of a case."""

from tumorvqa.measurements import Measurements
from tumorvqa.measuring import lesions, organs
from tumorvqa.scans import Scan
from tumorvqa.structures import HOSTS, LESIONS, STRUCTURES


def measure(scan: Scan) -> Measurements:
    """Every annotated organ, vessel, part and lesion; where a mask cannot be used, the reason is the status."""
    found = {host: lesions.components(scan, host) for host in HOSTS}
    measured = {name: organs.organ(scan, name, found) for name in scan.regions if STRUCTURES[name].kind != "lesion"}
    unusable = {
        name: organs.absent(name, status) for name, status in scan.faults.items() if STRUCTURES[name].kind != "lesion"
    }
    return Measurements(
        case=scan.case,
        patient=scan.patient,
        source=scan.source,
        method="masks",
        shape=scan.frame.shape,
        spacing=scan.frame.spacing,
        meta=scan.meta,
        organs=measured | unusable,
        lesions=tuple(lesion for host in HOSTS for lesion in lesions.measured(scan, host, found[host])),
        annotated=tuple(name for name in LESIONS if name in scan.regions),
        faults=scan.faults,
        provenance=scan.provenance,
    )
