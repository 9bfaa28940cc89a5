"""The blocks of a model, and what stands before and after them."""
# B batch, C channels, S the axes of an image (H W, or D H W)

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dnt.lookup import lookup
from dnt.nn.config import GPTConfig, ViTConfig
from dnt.nn.gains import Gain
from dnt.nn.lape import First, LaPEBlock, OfFirst, beside
from dnt.nn.layers import Block, Unit
from dnt.nn.ngpt import UnitBlock, UnitHead
from dnt.nn.norms import norm_of
from dnt.nn.placement import placement_named
from dnt.nn.residual import Doubled, Joined, ResiDualBlock
from dnt.nn.simplified import ParallelBlock, SimplifiedBlock

BLOCKS: dict[str, type[nn.Module]] = {  # made of config, placement, norm, layer (from 0), causal
    "sublayers": Block,
    "residual": ResiDualBlock,
    "ngpt": UnitBlock,
    "lape": LaPEBlock,
    "sas": SimplifiedBlock,
    "sas-p": ParallelBlock,
}


def stack(config: GPTConfig | ViTConfig, causal: bool) -> nn.ModuleList:
    """The blocks."""
    placements = placement_named(config.placement).of_blocks(config.depth)
    return nn.ModuleList(
        lookup(BLOCKS, placement.block, "block")(
            config, placement, norm_of(config, placement.prescribes.norm), i, causal
        )
        for i, placement in enumerate(placements)
    )


def placing(config: ViTConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """How positions (T, D) join what is embedded (B, T, D)."""
    return beside if placement_named(config.placement).block == "lape" else torch.add


def opening(config: GPTConfig | ViTConfig) -> nn.Module:
    """What embedding and position go through before the first block, but for their dropout."""
    placement = placement_named(config.placement)
    norm = norm_of(config, placement.prescribes.norm)(config.stream) if placement.input else nn.Identity()
    if placement.embed_gain and isinstance(config, GPTConfig):
        return nn.Sequential(Gain(1, start=config.dim**0.5), norm)
    match placement.block:
        case "ngpt":
            return Unit()
        case "lape":
            return OfFirst(norm)
        case _:
            return norm


def forking(config: GPTConfig | ViTConfig) -> nn.Module:
    """Dropout of what the first block gets, and a second stream where it begins as the first."""
    drop = nn.Dropout(config.dropout)
    match placement_named(config.placement).block:
        case "residual":
            return nn.Sequential(drop, Doubled())
        case "lape":
            return OfFirst(drop)
        case _:
            return drop


def closing(config: GPTConfig | ViTConfig) -> nn.Module:
    """What the last block's output goes through before the head."""
    placement = placement_named(config.placement)
    norm = norm_of(config, placement.prescribes.norm)(config.stream) if placement.final else nn.Identity()
    match placement.block:
        case "residual":
            return Joined(norm)
        case "lape":
            return nn.Sequential(First(), norm)
        case _:
            return norm


def head_of(config: GPTConfig | ViTConfig, outputs: int, bias: bool) -> nn.Linear:
    """From the last norm to a score for each token of the vocabulary, or class."""
    kind = UnitHead if placement_named(config.placement).block == "ngpt" else nn.Linear
    return kind(config.stream, outputs, bias=bias)


def around_patches(config: ViTConfig) -> tuple[nn.Module, nn.Module]:
    """What the pixels of each patch go through before they are embedded, and what the embedded patches do after."""
    placement = placement_named(config.placement)
    if not placement.patch:
        return nn.Identity(), nn.Identity()
    norm = norm_of(config, placement.prescribes.norm)
    return PixelNorm(norm(config.channels * config.patch_size**config.in_dims), config), norm(config.stream)


class PixelNorm(nn.Module):
    """A norm over all pixels and channels of each patch (2302.01327); an image of the same shape."""

    def __init__(self, norm: nn.Module, config: ViTConfig):
        super().__init__()
        self.norm, self.patch, self.side, self.axes = norm, config.patch_size, config.side, config.in_dims

    def forward(self, images_BCS: Tensor) -> Tensor:
        batch, channels = images_BCS.shape[:2]
        cut = images_BCS.reshape(batch, channels, *[self.side, self.patch] * self.axes)
        sides, pixels = [2 + 2 * i for i in range(self.axes)], [3 + 2 * i for i in range(self.axes)]
        patches = cut.permute(0, *sides, 1, *pixels)
        normed = self.norm(patches.flatten(1 + self.axes)).view_as(patches)
        order = [0, *sides, 1, *pixels]
        return normed.permute(*[order.index(i) for i in range(len(order))]).reshape(images_BCS.shape)
