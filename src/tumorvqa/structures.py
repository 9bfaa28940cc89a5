"""What a mask can be of: organs, vessels, their parts and lesions, with the names that data sets give them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Structure:
    """`title` is how a question says it; `host` the organ that a part or lesion belongs to (kidney for both sides)."""

    title: str
    kind: Literal["organ", "vessel", "part", "lesion"] = "organ"
    host: str | None = None
    aliases: tuple[str, ...] = ()


STRUCTURES = {
    "liver": Structure("liver"),
    "spleen": Structure("spleen"),
    "pancreas": Structure("pancreas"),
    "kidney_left": Structure("left kidney", aliases=("left_kidney",)),
    "kidney_right": Structure("right kidney", aliases=("right_kidney",)),
    "colon": Structure("colon"),
    "gallbladder": Structure("gallbladder", aliases=("gall_bladder",)),
    "stomach": Structure("stomach"),
    "duodenum": Structure("duodenum"),
    "small_bowel": Structure("small bowel", aliases=("intestine",)),
    "esophagus": Structure("esophagus"),
    "adrenal_gland_left": Structure("left adrenal gland"),
    "adrenal_gland_right": Structure("right adrenal gland"),
    "bladder": Structure("urinary bladder", aliases=("urinary_bladder",)),
    "prostate": Structure("prostate"),
    "rectum": Structure("rectum"),
    "lung_left": Structure("left lung"),
    "lung_right": Structure("right lung"),
    "femur_left": Structure("left femur"),
    "femur_right": Structure("right femur"),
    "common_bile_duct": Structure("common bile duct"),
    "aorta": Structure("aorta", "vessel"),
    "inferior_vena_cava": Structure("inferior vena cava", "vessel", aliases=("postcava",)),
    "portal_vein": Structure("portal and splenic vein", "vessel", aliases=("portal_vein_and_splenic_vein", "veins")),
    "superior_mesenteric_artery": Structure("superior mesenteric artery", "vessel", aliases=("sma",)),
    "celiac_artery": Structure("celiac artery", "vessel", aliases=("celiac_trunk", "celiac_aa")),
    "common_hepatic_artery": Structure("common hepatic artery", "vessel"),
    "hepatic_vessel": Structure("hepatic vessels", "vessel"),
    **{f"liver_segment_{k}": Structure(f"liver segment {k}", "part", "liver") for k in range(1, 9)},
    **{
        f"pancreas_{part}": Structure(f"{part} of the pancreas", "part", "pancreas")
        for part in ("head", "body", "tail")
    },
    "liver_lesion": Structure("liver lesion", "lesion", "liver", ("hepatic_lesion",)),
    "liver_tumor": Structure("liver tumor", "lesion", "liver", ("hepatic_tumor",)),
    "liver_cyst": Structure("liver cyst", "lesion", "liver", ("hepatic_cyst",)),
    "kidney_lesion": Structure("kidney lesion", "lesion", "kidney", ("renal_lesion",)),
    "kidney_tumor": Structure("kidney tumor", "lesion", "kidney", ("renal_tumor",)),
    "kidney_cyst": Structure(
        "kidney cyst", "lesion", "kidney", ("renal_cyst", "kidney_cyst_left", "kidney_cyst_right")
    ),
    "pancreas_lesion": Structure("pancreatic lesion", "lesion", "pancreas", ("pancreatic_lesion",)),
    "pancreas_pdac": Structure("PDAC", "lesion", "pancreas", ("pancreatic_pdac", "pdac")),
    "pancreas_pnet": Structure("PNET", "lesion", "pancreas", ("pancreatic_pnet", "pnet")),
    "pancreas_cyst": Structure("pancreatic cyst", "lesion", "pancreas", ("pancreatic_cyst",)),
    "colon_lesion": Structure("colon lesion", "lesion", "colon", ("colon_cancer", "colon_tumor")),
}

NAMED = {alias: name for name, row in STRUCTURES.items() for alias in (name, *row.aliases)}

# Organs that are measured and asked about; lesions of "kidney" lie in either
MEASURED = ("liver", "spleen", "pancreas", "kidney_left", "kidney_right")
HOSTS = {
    "liver": ("liver",),
    "kidney": ("kidney_left", "kidney_right"),
    "pancreas": ("pancreas",),
    "colon": ("colon",),
}
LESIONS = {name: row for name, row in STRUCTURES.items() if row.kind == "lesion"}
KINDS = {host: tuple(name.split("_")[1] for name, row in LESIONS.items() if row.host == host) for host in HOSTS}
PLACES = {
    "liver": tuple(f"liver_segment_{k}" for k in range(1, 9)),
    "kidney": HOSTS["kidney"],
    "pancreas": ("pancreas_head", "pancreas_body", "pancreas_tail"),
}
