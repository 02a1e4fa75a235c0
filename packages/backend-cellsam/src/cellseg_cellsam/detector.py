"""The detector: anchor points that look for cells in the features of the image encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional  # noqa: TID253
from torchvision.ops import box_convert  # noqa: TID253

from cellseg_cellsam.attention import DeformableAttention, sampled, sines
from cellseg_cellsam.sizes import DetectorSizes

_PRIOR = 0.01
"""How probable a cell is at first at each anchor (Lin et al., arXiv:1708.02002)."""
_SPACINGS = 2.0
"""Side of the boxes at first, in distances between anchors."""
_CELLS = 6.0
"""Side of what a token of the image looks at at first, in tokens."""
_LEAST = 1e-3
_GROWTH = 2.0
"""A layer changes a side by a factor of ``exp(_GROWTH)`` at most."""


@dataclass(frozen=True)
class Detected:
    """What each layer of the detector says; the last one is the answer."""

    logits: Tensor
    """``(layers, n, q)``, of "is a cell"."""
    boxes: Tensor
    """``(layers, n, q, 4)`` float32, ``cx cy w h``, 0..1 of the square; a box may reach beyond."""

    def best(self) -> tuple[Tensor, Tensor]:
        """The answer.

        Returns:
            Scores ``(n, q)`` float32, 0..1, and boxes ``(n, q, 4)`` float32, ``x0 y0 x1 y1``, 0..1
            of the square, clipped to it.
        """
        boxes = box_convert(self.boxes[-1].float(), "cxcywh", "xyxy")
        return self.logits[-1].float().sigmoid(), boxes.clamp(0, 1)


class Detector(nn.Module):
    """Boxes of cells, after Anchor DETR (Wang et al., arXiv:2109.07107).

    Queries are anchor points, which are learned and lie on a regular grid at first. The content of
    a query starts as what the image shows at its anchor. From layer to layer queries attend to
    each other and to the places of the image around their boxes (deformable attention, Zhu et al.,
    arXiv:2010.04159), and refine their boxes; what a layer says of a box is relative to the box of
    the layer before. Heads are a layer's own. Parameters start random, but all boxes start square,
    around their anchors, and all scores at 0.01.

    Args:
        channels: of the features.
        sizes: of the detector.
    """

    def __init__(self, channels: int, sizes: DetectorSizes) -> None:
        super().__init__()
        width = sizes.width
        self.sizes = sizes
        self.input = nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.GroupNorm(math.gcd(32, width // 4), width)
        )
        self.encoder = nn.ModuleList(_EncoderLayer(sizes) for _ in range(sizes.encoder_layers))
        self.anchors = nn.Parameter(_regular(sizes.queries))
        side = min(_SPACINGS / math.sqrt(sizes.queries), 0.5)
        self.side = nn.Parameter(torch.tensor([side, side]).log())
        self.content = _mlp(width, width, width)
        self.decoder = nn.ModuleList(_DecoderLayer(sizes) for _ in range(sizes.decoder_layers))

    def forward(self, features: Tensor) -> Detected:
        """Look for cells.

        Args:
            features: ``(n, channels, y, x)``, of a grid of any size.
        """
        image = self.input(features)
        image = self._encoded(image)
        n = image.shape[0]
        points = self.anchors.expand(n, -1, -1)
        boxes = torch.cat([points, self.side.exp().expand_as(points)], dim=-1).float()
        content = sampled(image, points).to(image.dtype)
        content = content + self.content(content)
        logits, refined = [], []
        for layer in self.decoder:
            content, logit, boxes = layer(content, boxes, image)
            logits.append(logit)
            refined.append(boxes)
            boxes = _reference(boxes)
        return Detected(torch.stack(logits), torch.stack(refined))

    def _encoded(self, image: Tensor) -> Tensor:
        n, _, height, width = image.shape
        boxes = _tokens(height, width, image.device).expand(n, -1, -1)
        for layer in self.encoder:
            image = layer(image, boxes)
        return image


class _EncoderLayer(nn.Module):
    """Tokens of the image look at each other."""

    def __init__(self, sizes: DetectorSizes) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.positions = nn.Linear(2 * sizes.width, sizes.width)
        self.attention = DeformableAttention(sizes.width, sizes.heads)
        self.mlp = _mlp(sizes.width, sizes.mlp, sizes.width)

    def forward(self, image: Tensor, boxes: Tensor) -> Tensor:
        n, width, rows, columns = image.shape
        tokens = image.flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        queries = normed + self.positions(sines(boxes[..., :2], width))
        seen = normed.transpose(1, 2).reshape(n, width, rows, columns)
        tokens = tokens + self.attention(queries, boxes, seen)
        tokens = tokens + self.mlp(self.last(tokens))
        return tokens.transpose(1, 2).reshape(n, width, rows, columns)


class _DecoderLayer(nn.Module):
    """Queries attend to each other and to the image, and answer."""

    def __init__(self, sizes: DetectorSizes) -> None:
        super().__init__()
        width = sizes.width
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.heads = sizes.heads
        self.positions = _mlp(4 * width, width, width)
        self.together = nn.Linear(width, 2 * width)
        self.values, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.attention = DeformableAttention(width, sizes.heads)
        self.mlp = _mlp(width, sizes.mlp, width)
        self.score = nn.Linear(width, 1)
        self.box = _mlp(width, width, 4)
        nn.init.constant_(self.score.bias, -math.log((1 - _PRIOR) / _PRIOR))
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.box[-1].weight)
        nn.init.zeros_(self.box[-1].bias)

    def forward(
        self, content: Tensor, boxes: Tensor, image: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Content ``(n, q, width)``, logits ``(n, q)`` and boxes ``(n, q, 4)`` after it."""
        place = self.positions(sines(boxes, content.shape[-1]).to(content.dtype))
        first, second, third, last = self.norms
        content = content + self._among(first(content), place)
        content = content + self.attention(second(content) + place, boxes, image)
        content = content + self.mlp(third(content))
        answer = last(content)
        change = self.box(answer).float()
        centres = boxes[..., :2] + change[..., :2] * boxes[..., 2:]
        sides = boxes[..., 2:] * change[..., 2:].clamp(-_GROWTH, _GROWTH).exp()
        return content, self.score(answer)[..., 0], torch.cat([centres, sides], dim=-1)

    def _among(self, normed: Tensor, place: Tensor) -> Tensor:
        """What queries see of each other."""
        n, q, width = normed.shape
        parts = (*self.together(normed + place).chunk(2, dim=-1), self.values(normed))
        query, key, value = (x.reshape(n, q, self.heads, -1).transpose(1, 2) for x in parts)
        seen = functional.scaled_dot_product_attention(query, key, value)
        return self.out(seen.transpose(1, 2).reshape(n, q, width))


def _reference(boxes: Tensor) -> Tensor:
    """Boxes for the next layer to start from; it does not change what they were."""
    centres, sides = boxes.detach().split(2, dim=-1)
    return torch.cat([centres.clamp(0, 1), sides.clamp(_LEAST, 1.0)], dim=-1)


def _regular(count: int) -> Tensor:
    """``(count, 2)``: points on a regular grid over the square, as even as their number allows."""
    rows = max(1, round(math.sqrt(count)))
    ends = torch.linspace(0, count, rows + 1).round().long().tolist()
    lines = []
    for row in range(rows):
        here = ends[row + 1] - ends[row]
        x = (torch.arange(here) + 0.5) / here
        lines.append(torch.stack([x, torch.full_like(x, (row + 0.5) / rows)], dim=-1))
    return torch.cat(lines)


def _tokens(rows: int, columns: int, device: torch.device) -> Tensor:
    """``(1, rows * columns, 4)``: around each token, what it looks at at first."""
    y = (torch.arange(rows, device=device) + 0.5) / rows
    x = (torch.arange(columns, device=device) + 0.5) / columns
    y, x = torch.meshgrid(y, x, indexing="ij")
    sides = (torch.full_like(x, _CELLS / columns), torch.full_like(y, _CELLS / rows))
    return torch.stack([x, y, *sides], dim=-1).view(1, -1, 4)


def _mlp(given: int, hidden: int, wanted: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(given, hidden), nn.GELU(), nn.Linear(hidden, wanted))
