"""What a package says about its model to people."""

from __future__ import annotations

from collections.abc import Sequence

from cellseg.bundle import Bundle
from cellseg.torch.export.preprocessing import described

_NAMES = 20


def readme(bundle: Bundle, summary: str, usage: str, outputs: Sequence[tuple[str, str]]) -> str:
    """The README of a package: Markdown that states what the bundle knows, and no more.

    Args:
        bundle: of the model.
        summary: what the network is.
        usage: what remains to be done with the outputs.
        outputs: their names and meanings.
    """
    listed = "\n".join(f"- `{name}`: {meaning}" for name, meaning in outputs)
    return f"""# cellseg {bundle.backend}

{summary}

## Input

Images of {bundle.channels} channel{"s" if bundle.channels > 1 else ""}{_channels(bundle)}, in the
brightness that the microscope gives. Software that runs bioimage.io models then prepares them:
{described(bundle.normaliser)}

## Output

{listed}

{usage}

## Training

{_trained_on(bundle)}
{_base_weights(bundle)}
All options of the training are in `bundle.json`.

## Validation

The test tensors are synthetic cells, made up to check that software computes the same numbers;
they say nothing about how well the model segments. Before using it, segment images of your own
for which the truth is known, and score the result, for example with `cellseg evaluate`.
"""


def _channels(bundle: Bundle) -> str:
    return f" ({', '.join(bundle.channel_names)})" if bundle.channel_names else ""


def _trained_on(bundle: Bundle) -> str:
    by = f"Trained by cellseg {bundle.cellseg_version} with the backend {bundle.backend}"
    z, y, x = bundle.spacing
    voxels = "" if (z, y, x) == (1, 1, 1) else f", on voxels of {z:g}, {y:g}, {x:g} µm (z, y, x)"
    names = bundle.trained_on
    if not names:
        return f"{by}{voxels}. The names of the training images are not recorded."
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return f"{by}{voxels}, and these {len(names)} images: {', '.join(names[:_NAMES])}{more}."


def _base_weights(bundle: Bundle) -> str:
    if not bundle.base_weights:
        return "It started from random weights."
    listed = "; ".join(f"{w.name} ({w.source}, licence {w.licence})" for w in bundle.base_weights)
    return f"It started from published weights, whose terms apply as well: {listed}."
