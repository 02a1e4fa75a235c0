"""What ``cellseg doctor`` says of Segment Anything. Light; heavy imports are in the function."""

from __future__ import annotations

from collections.abc import Iterator

from cellseg.diagnosis import needed, optional
from cellseg.errors import PluginError
from cellseg.specs import Finding

_MOBILE = "uv pip install git+https://github.com/ChaoningZhang/MobileSAM.git"


def segment_anything(mobile: bool = True) -> Iterator[Finding]:
    """Whether it is the package that does no harm.

    Args:
        mobile: whether the plugin has the models vit_t; then also whether MobileSAM is there.
    """
    found = needed(
        "segment-anything-py",
        "segment_anything",
        'uv pip install --force-reinstall "segment-anything-py>=1.0.1"',
    )
    yield found
    if found.state == "ok":
        from cellseg.torch.sam.guard import check_segment_anything

        try:
            check_segment_anything()
        except PluginError as error:
            yield Finding("problem", "segment_anything", str(error), error.hint or "")
    if mobile:
        yield optional("mobile-sam", "mobile_sam", "the models vit_t", _MOBILE)
