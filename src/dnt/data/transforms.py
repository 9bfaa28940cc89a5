"""Images as a model sees them: geometry and augmentation of one image, mixing of a batch. torchvision does the work.

torchvision draws from torch's global generator, which dropout in another thread draws from too. Here each image has one
of its own.
"""
# B batch, N classes, C channels, H height, W width, S image size (H = W = S)

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dnt.data.augment import Augment
from dnt.extras import extra

BEFORE, AFTER, MIXING = 1, 2, 3  # streams of random numbers: of an image, before and after normalization; of a batch
LEVELS = 11  # of RandAugment: magnitudes 0 to 10
DRAWS = {torch.rand, torch.randint, Tensor.uniform_, Tensor.normal_}  # what torchvision draws with

# When a thread first computes in parallel it takes the number of threads that torch was told last, and keeps it: this
# one now, not while a loader has set it to 1 for itself.
torch.get_num_threads()


@contextmanager
def one_thread() -> Iterator[None]:
    """For the loader's thread: more only wait for each other on single images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Randomness(TorchFunctionMode):
    """Within it, and in this thread alone, torchvision draws from a generator of (seed, sample, stream)."""

    def __init__(self, seed: int, sample: int, stream: int):
        super().__init__()
        state = np.random.SeedSequence([seed, sample, stream]).generate_state(1, np.uint64)
        self.generator = torch.Generator().manual_seed(int(state[0]))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = {"generator": self.generator} if func in DRAWS else {}
        return func(*args, **kwargs or {}, **own)


def centered(image: Tensor, size: int, center: float) -> Tensor:
    """(..., C, H, W) uint8 -> (..., C, S, S): a central square of `center` of the shorter side; of size S, all."""
    height, width = image.shape[-2:]
    if (height, width) == (size, size):
        return image
    F = extra("torchvision.transforms.v2.functional", "images")
    scale = size / (center * min(height, width))
    shape = [max(size, round(height * scale)), max(size, round(width * scale))]
    return F.center_crop(F.resize(image, shape, antialias=True), [size, size])


def all_centered(images: Tensor | Sequence[Tensor], size: int, center: float) -> Tensor:
    """Images of one size, (B, C, H, W), or of any sizes -> (B, C, S, S)."""
    if isinstance(images, Tensor):
        return centered(images, size, center)
    return torch.stack([centered(image, size, center) for image in images])


class Augmented:
    """The augmentation of single images, each a function of (seed, sample)."""

    def __init__(self, augment: Augment, size: int):
        v2 = extra("torchvision.transforms.v2", "images")
        self.augment, self.size = augment, size
        self.transforms: list[Any] = []
        if augment.scale:
            self.transforms.append(v2.RandomResizedCrop(size, scale=augment.scale, antialias=True))
        if augment.pad:
            self.transforms.append(v2.RandomCrop(size, padding=augment.pad))
        if augment.flip:
            self.transforms.append(v2.RandomHorizontalFlip(augment.flip))
        if augment.randaugment:
            levels = {"magnitude": augment.magnitude, "num_magnitude_bins": LEVELS}
            self.transforms.append(v2.RandAugment(augment.randaugment, **levels))
        self.erase = v2.RandomErasing(augment.erasing, value="random") if augment.erasing else None

    def before(self, images: Tensor | Sequence[Tensor], seed: int, samples: np.ndarray) -> Tensor:
        """uint8 images, of one size or of any -> (B, C, S, S) uint8."""
        if not self.augment.scale:
            images = all_centered(images, self.size, self.augment.center)
            if not self.transforms:
                return images
        varied = []
        for image, sample in zip(images, samples, strict=True):
            with Randomness(seed, int(sample), BEFORE):
                for transform in self.transforms:
                    image = transform(image)
            varied.append(image)
        return torch.stack(varied)

    def after(self, images: Tensor, seed: int, samples: np.ndarray) -> Tensor:
        """Rectangles of normalized (B, C, S, S) images become Gaussian noise."""
        if self.erase:
            for i, sample in enumerate(samples):
                with Randomness(seed, int(sample), AFTER):
                    images[i] = self.erase(images[i])
        return images


def soft_labels(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """(B,) class numbers -> (B, N) float32: (1 - s) one_hot + s / N."""
    return torch.nn.functional.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


class Mix:
    """lambda image + (1 - lambda) partner everywhere (mixup), or 1 here and 0 in a box (cutmix): one draw a batch.

    After Zhang et al. (2018) and Yun et al. (2019); as timm and torchvision do, a batch has one lambda and one box, and
    cutmix' lambda is corrected to the share that the box has after clipping.
    """

    def __init__(self, augment: Augment, size: int, seed: int, step: int):
        random = np.random.default_rng([seed, step, MIXING])
        cut = augment.cutmix > 0 and (not augment.mixup or random.random() < 0.5)
        alpha = augment.cutmix if cut else augment.mixup
        self.share = float(random.beta(alpha, alpha))
        self.box: tuple[slice, slice] | None = None
        if cut:
            half = size * (1 - self.share) ** 0.5 / 2
            rows, columns = (np.clip([round(at - half), round(at + half)], 0, size) for at in random.random(2) * size)
            self.box = slice(*map(int, rows)), slice(*map(int, columns))
            self.share = 1 - float(np.diff(rows)[0] * np.diff(columns)[0]) / size**2

    @staticmethod
    def partners(rows: np.ndarray, batch_size: int) -> np.ndarray:
        """Half a batch further on: rows are in random order, and who takes rows r::R mostly has the partners too."""
        return (rows + batch_size // 2) % batch_size

    def images(self, own: Tensor, other: Tensor) -> Tensor:
        """Both (B, C, S, S)."""
        if self.box is None:
            return self.share * own + (1 - self.share) * other
        mixed = own.clone()
        mixed[:, :, *self.box] = other[:, :, *self.box]
        return mixed

    def labels(self, own: Tensor, other: Tensor) -> Tensor:
        """Both (B, N)."""
        return self.share * own + (1 - self.share) * other
