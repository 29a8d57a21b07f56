"""The region proposal network in torch, with names of this project, since no weights are published.

Source: ``edgesam_jax.models.proposals``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesam_jax.config import PlainVitConfig, ProposalConfig, SamConfig, VitConfig
from edgesam_jax.models.proposals import EPSILON, FUSION_EPSILON, KEEP, LEVELS


def pyramid_widths(config: SamConfig) -> tuple[int, ...]:
    """Return the channels of an encoder's three maps."""
    assert not isinstance(config.encoder, VitConfig | PlainVitConfig)
    return config.encoder.widths[-3:]


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, EPSILON, 1 - KEEP)


class SeparableConv(nn.Module):
    """Depthwise 3x3 without bias, then 1x1 with bias."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.depthwise_conv = nn.Conv2d(cin, cin, 3, padding=1, groups=cin, bias=False)
        self.pointwise_conv = nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class Lateral(nn.Module):
    """1x1 with bias, batch norm."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 1)
        self.bn = _norm(cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Node(nn.Module):
    """Maps averaged with learned positive weights; swish, separable convolution, batch norm."""

    def __init__(self, channels: int, maps: int) -> None:
        super().__init__()
        self.fusion_weights = nn.Parameter(torch.ones(maps))
        self.conv = SeparableConv(channels, channels)
        self.bn = _norm(channels)

    def forward(self, *maps: Tensor) -> Tensor:
        weights = self.fusion_weights.relu()
        weights = weights / (weights.sum() + FUSION_EPSILON)
        x = maps[0] * weights[0]
        for i in range(1, len(maps)):
            x = x + maps[i] * weights[i]
        return self.bn(self.conv(F.silu(x)))


def _up(x: Tensor, like: Tensor) -> Tensor:
    x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return x if x.shape == like.shape else x[:, :, : like.shape[2], : like.shape[3]]


def _down(x: Tensor) -> Tensor:
    """3x3 max pooling with stride 2 and TensorFlow's SAME padding; the padding value never wins, and fits float16."""
    pads = []
    for side in (x.shape[3], x.shape[2]):
        pads += [0, 1] if side % 2 == 0 else [1, 1]
    return F.max_pool2d(F.pad(x, pads, value=-6e4), 3, 2)


class Pyramid(nn.Module):
    """Three maps -> five maps of the pyramid's width."""

    def __init__(self, config: ProposalConfig, widths: tuple[int, ...]) -> None:
        super().__init__()
        c, self.repeats = config.channels, config.repeats
        for i, width in enumerate(widths, 3):
            setattr(self, f"p{i}_lateral", Lateral(width, c))
            if i > 3:
                setattr(self, f"p{i}_lateral_again", Lateral(width, c))
        self.p6_lateral = Lateral(widths[-1], c)
        for number in range(config.repeats):
            for i in range(LEVELS):
                if i < LEVELS - 1:
                    setattr(self, f"round{number}_p{i + 3}_down", Node(c, 2))
                if i > 0:
                    setattr(self, f"round{number}_p{i + 3}_up", Node(c, 3 if i < LEVELS - 1 else 2))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        levels = [getattr(self, f"p{i}_lateral")(x) for i, x in enumerate(maps, 3)]
        levels.append(_down(self.p6_lateral(maps[-1])))
        levels.append(_down(levels[-1]))
        again = [levels[0], *(getattr(self, f"p{i}_lateral_again")(x) for i, x in enumerate(maps[1:], 4)), *levels[3:]]
        for number in range(self.repeats):
            down = [levels[-1]]
            for i in range(LEVELS - 2, -1, -1):
                node = getattr(self, f"round{number}_p{i + 3}_down")
                down.insert(0, node(levels[i], _up(down[0], levels[i])))
            up = [down[0]]
            for i in range(1, LEVELS):
                node = getattr(self, f"round{number}_p{i + 3}_up")
                middle = [down[i]] if i < LEVELS - 1 else []
                up.append(node(again[i], *middle, _down(up[-1])))
            levels = again = up
        return levels


class Head(nn.Module):
    """Score logits (b n) and box codes (b n 4) of all anchors."""

    def __init__(self, config: ProposalConfig) -> None:
        super().__init__()
        c = config.channels
        for task, outputs in (("class", 1), ("box", 4)):
            convs = nn.ModuleList(SeparableConv(c, c) for _ in range(config.head_convs))
            norms = nn.ModuleList(nn.ModuleList(_norm(c) for _ in range(config.head_convs)) for _ in range(LEVELS))
            setattr(self, f"{task}_conv", convs)
            setattr(self, f"{task}_bn", norms)
            setattr(self, f"{task}_out", SeparableConv(c, config.anchors * outputs))

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        results = []
        for task, outputs in (("class", 1), ("box", 4)):
            convs, norms, last = (getattr(self, f"{task}_{part}") for part in ("conv", "bn", "out"))
            outputs_by_level = []
            for x, level_norms in zip(levels, norms, strict=True):
                for conv, norm in zip(convs, level_norms, strict=True):
                    x = F.silu(norm(conv(x)))
                outputs_by_level.append(last(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, outputs))
            results.append(torch.cat(outputs_by_level, dim=1))
        return results[0][..., 0], results[1]


class Proposals(nn.Module):
    """Pyramid and head on an encoder's three maps."""

    def __init__(self, config: ProposalConfig, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.fpn = Pyramid(config, widths)
        self.rpn_head = Head(config)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self.rpn_head(self.fpn(maps))
