"""Words that mean the same class: a row a class, its first word the name."""

from tumorvqa.structures import STRUCTURES

ROMAN = {1: "i", 2: "ii", 3: "iii", 4: "iv", 5: "v", 6: "vi", 7: "vii", 8: "viii"}

CLASSES = (
    ("left", "left kidney", "left side", "left one"),
    ("right", "right kidney", "right side", "right one"),
    ("same", "the same", "equal", "equally", "similar", "no difference", "symmetric", "symmetrical", "comparable"),
    ("hypoattenuating", "hypo", "hypodense", "hypo-attenuating", "hypoattenuation", "low attenuation"),
    ("isoattenuating", "iso", "isodense", "iso-attenuating", "isoattenuation"),
    ("hyperattenuating", "hyper", "hyperdense", "hyper-attenuating", "hyperattenuation", "high attenuation"),
    ("PDAC", "pancreatic ductal adenocarcinoma", "ductal adenocarcinoma", "adenocarcinoma"),
    (
        "PNET",
        *("pancreatic neuroendocrine tumor", "pancreatic neuroendocrine tumour"),
        *("neuroendocrine tumor", "neuroendocrine tumour", "neuroendocrine neoplasm"),
    ),
    ("cyst", "kidney cyst", "renal cyst", "cystic"),
    ("tumor", "tumour", "kidney tumor", "kidney tumour", "renal tumor", "renal tumour"),
    ("simple cyst", "simple renal cyst", "benign simple cyst"),
    ("indeterminate", "indeterminate mass", "indeterminate lesion"),
    ("hyperattenuating cyst", "hyperdense cyst", "hyperattenuating renal cyst"),
    ("RCC", "renal cell carcinoma", "enhancing solid mass"),
    ("fatty liver", "fatty", "steatosis", "steatotic", "hepatic steatosis"),
    ("no fatty liver", "not fatty", "no steatosis", "no hepatic steatosis", "not a fatty liver", "non-fatty"),
    ("normal", "no splenomegaly", "not enlarged"),
    ("mild", "mild splenomegaly", "mildly enlarged"),
    ("moderate", "moderate splenomegaly", "moderately enlarged"),
    ("severe", "severe splenomegaly", "severely enlarged", "massive", "massive splenomegaly"),
    ("resectable", "surgically resectable"),
    ("borderline resectable", "borderline", "borderline-resectable"),
    ("unresectable", "not resectable", "non-resectable", "nonresectable", "irresectable", "locally advanced"),
    ("highly clustered", "highly", "tightly clustered"),
    ("somewhat clustered", "somewhat", "moderately clustered"),
    ("widely distributed", "widely", "widely scattered", "scattered", "widely spread", "dispersed"),
    *((f"T{n}", f"stage T{n}", f"pT{n}", f"cT{n}") for n in range(1, 5)),
    *((f"G{n}", f"grade {n}", f"S{n}", f"grade G{n}") for n in range(4)),
    *(
        (f"liver segment {k}", f"segment {k}", f"segment {ROMAN[k]}", f"liver segment {ROMAN[k]}", f"seg {k}")
        for k in range(1, 9)
    ),
    *(
        (f"{part} of the pancreas", part, f"pancreatic {part}", f"pancreas {part}", f"the {part}")
        for part in ("head", "body", "tail")
    ),
    *(
        (row.title, name.replace("_", " "), *(alias.replace("_", " ") for alias in row.aliases))
        for name, row in STRUCTURES.items()
        if row.kind in ("organ", "vessel") and not name.startswith("kidney")
    ),
    ("inferior vena cava", "ivc", "vena cava"),
    ("celiac artery", "coeliac trunk", "coeliac artery"),
    ("portal and splenic vein", "portal vein", "splenic vein"),
    ("kidney", "kidneys", "renal"),
)


def words_of(name: str) -> tuple[str, ...]:
    """All that may be said for `name`, itself first; a bracket behind it may be left out."""
    plain = name.partition("(")[0].strip()
    own = {name.lower(), plain.lower(), name.lower().replace("_", " ")}
    rows = [row for row in CLASSES if own & {word.lower() for word in row}]
    return tuple(dict.fromkeys((name, plain, name.replace("_", " "), *(word for row in rows for word in row))))
