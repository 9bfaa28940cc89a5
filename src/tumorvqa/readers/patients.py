"""What a table tells about a case without telling who it is."""

import hashlib
import hmac
import re
from collections.abc import Mapping

from tumorvqa.scans import Contrast, Meta

SEXES: dict[str, str] = {"f": "female", "female": "female", "w": "female", "m": "male", "male": "male"}
CONTRASTS: dict[str, Contrast] = {
    "plain": "plain",
    "native": "plain",
    "non-contrast": "plain",
    "arterial": "arterial",
    "venous": "venous",
    "portal": "venous",
    "portal venous": "venous",
    "delay": "delayed",
    "delayed": "delayed",
}
AGES = range(0, 121)
A_YEAR = {"d": 365, "w": 52, "m": 12}  # ages are "063Y" in DICOM, and of children "006M", "012W" and "018D"


def patient_group(identity: str, salt: str = "") -> str:
    """12 hex digits of HMAC-SHA256(salt, identity): groups the cases of one person, and without the salt is not undone
    by trying all identities.
    """
    return hmac.new(salt.encode(), identity.encode(), hashlib.sha256).hexdigest()[:12]


def meta(row: Mapping[str, str]) -> Meta:
    """Sex, age, contrast and scanner of a table's row; whole years; what is not understood is None."""
    age = re.match(r"\s*(\d+)\s*([dwm]?)", row.get("age", "").lower())
    years = int(age[1]) // A_YEAR.get(age[2], 1) if age else -1
    return Meta(
        sex=SEXES.get(row.get("sex", "").strip().lower()),  # type: ignore[arg-type]
        age=years if years in AGES else None,
        contrast=CONTRASTS.get(row.get("contrast", "").strip().lower()),
        scanner=row.get("scanner", "").strip()[:64] or None,
    )
