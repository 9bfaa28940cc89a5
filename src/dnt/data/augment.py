"""How training images are varied, as numbers. No torch.

What is done with them stands in dnt.data.transforms.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Augment:
    """Augmentations in the order in which they act; each is off by default.

    scale: the share of the area that a random crop takes, from least to most, stretched to the image size (aspect 3/4
    to 4/3); without it, images are resized and cropped to their centre. center: the share of the shorter side that this
    central crop keeps, also in evaluation; an image that has the size asked for is kept whole. pad: pixels of black
    around the image before a random crop of the image size. flip: the probability of a mirror image. randaugment: how
    many operations of RandAugment (Cubuk et al. 2020, arXiv 1909.13719), each at `magnitude` of 10. erasing: the
    probability that a rectangle becomes noise (Zhong et al. 2017, arXiv 1708.04896). mixup, cutmix: the alpha of the
    Beta(alpha, alpha) that their share is drawn from (arXiv 1710.09412, 1905.04899); with both, each has half of the
    steps. smoothing: the share of a label that all classes have equally (arXiv 1512.00567).
    """

    scale: tuple[float, float] | None = None
    center: float = 1.0
    pad: int = 0
    flip: float = 0.0
    randaugment: int = 0
    magnitude: int = 9
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "erasing", "smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share from 0 to 1.")
        if not 0 < self.center <= 1:
            raise ValueError(f"center is {self.center}; it is a share above 0 and at most 1.")
        for name in ("pad", "randaugment", "magnitude"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} is {getattr(self, name)}; it is a whole number.")
        if self.scale is not None and not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1):
            raise ValueError(f"scale is {self.scale}; it is (least, most), both above 0 and at most 1.")
        for name in ("pad", "randaugment", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it is 0 (off) or more.")
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"magnitude is {self.magnitude}; it is a whole number from 0 to 10.")

    @property
    def mixes(self) -> bool:
        """Whether an image becomes a mixture of two."""
        return self.mixup > 0 or self.cutmix > 0


AUGMENTATIONS: dict[str, Augment] = {
    "none": Augment(),
    "flip-crop": Augment(pad=4, flip=0.5),  # He et al. 2015, section 4.2, for CIFAR-10
    "deit": Augment(  # Touvron et al. 2020, table 9, without repeated augmentation
        scale=(0.08, 1.0), center=0.875, flip=0.5, randaugment=2, erasing=0.25, mixup=0.8, cutmix=1.0, smoothing=0.1
    ),
}
