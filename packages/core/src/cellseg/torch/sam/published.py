"""Published models: where their files are, their checksums and licences. Light.

The files and checksums are those that micro-SAM names, and lie where micro-SAM puts them, so that
neither downloads what the other has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cellseg.download.remote import Remote
from cellseg.specs import BaseWeights

_META = "https://dl.fbaipublicfiles.com/segment_anything"
_GWDG = "https://owncloud.gwdg.de/index.php/s"
_ZOO = "https://uk1s3.embassy.ebi.ac.uk/public-datasets/bioimage.io"
_APACHE = "Apache-2.0"
_BY = "CC-BY-4.0"
_UNKNOWN = "not known to cellseg; ask its authors before you redistribute it"


@dataclass(frozen=True, slots=True)
class Published:
    """A model that can be downloaded."""

    weights: Remote
    """Of Segment Anything."""
    licence: str
    decoder: Remote | None = None
    """Of micro-SAM's decoder for automatic segmentation, where it has one."""


def _published(
    name: str, url: str, checksum: str, licence: str, decoder: tuple[str, str] | None = None
) -> tuple[str, Published]:
    weights = Remote(url=url, name=name, checksum=f"xxh128:{checksum}")
    if decoder is None:
        return name, Published(weights, licence)
    more = Remote(url=decoder[0], name=f"{name}_decoder", checksum=f"xxh128:{decoder[1]}")
    return name, Published(weights, licence, more)


def _zoo(name: str, record: str, checksum: str, decoder: str) -> tuple[str, Published]:
    """A generalist in the BioImage Model Zoo."""
    base = f"{_ZOO}/{record}/files/{name[:5]}"
    return _published(name, f"{base}.pt", checksum, _BY, (f"{base}_decoder.pt", decoder))


def _histopathology(
    size: str, file: str, checksum: str, decoder_file: str, decoder: str
) -> tuple[str, Published]:
    """A generalist of PathoSAM (Griebel et al., arXiv:2502.00408)."""
    return _published(
        f"vit_{size}_histopathology",
        f"{_GWDG}/{file}/download",
        checksum,
        _UNKNOWN,
        (f"{_GWDG}/{decoder_file}/download", decoder),
    )


PUBLISHED: Mapping[str, Published] = dict(
    (
        _published(
            "vit_b",
            f"{_META}/sam_vit_b_01ec64.pth",
            "6923c33df3637b6a922d7682bfc9a86b",
            _APACHE,
        ),
        _published(
            "vit_l",
            f"{_META}/sam_vit_l_0b3195.pth",
            "a82beb3c660661e3dd38d999cc860e9a",
            _APACHE,
        ),
        _published(
            "vit_h",
            f"{_META}/sam_vit_h_4b8939.pth",
            "97698fac30bd929c2e6d8d8cc15933c2",
            _APACHE,
        ),
        _published(
            "vit_t",
            f"{_GWDG}/TuDzuwVDHd1ZDnQ/download",
            "8eadbc88aeb9d8c7e0b4b60c3db48bd0",
            _APACHE,
        ),
        _zoo(
            "vit_b_lm",
            "diplomatic-bug/1.2",
            "fe9252a29f3f4ea53c15a06de471e186",
            "708b15ac620e235f90bb38612c4929ba",
        ),
        _zoo(
            "vit_l_lm",
            "idealistic-rat/1.2",
            "017f20677997d628426dec80a8018f9d",
            "2faeafa03819dfe03e7c46a44aaac64a",
        ),
        _zoo(
            "vit_t_lm",
            "faithful-chicken/1.1",
            "72ec5074774761a6e5c05a08942f981e",
            "3e914a5f397b0312cdd36813031f8823",
        ),
        _zoo(
            "vit_b_em_organelles",
            "noisy-ox/1.2",
            "f3bf2ed83d691456bae2c3f9a05fb438",
            "bb6398956a6b0132c26b631c14f95ce2",
        ),
        _zoo(
            "vit_l_em_organelles",
            "humorous-crab/1.2",
            "810b084b6e51acdbf760a993d8619f2d",
            "334877640bfdaaabce533e3252a17294",
        ),
        _zoo(
            "vit_t_em_organelles",
            "greedy-whale/1",
            "253474720c497cce605e57c9b1d18fd9",
            "8f897c7bb93174a4d1638827c4dd6f44",
        ),
        _histopathology(
            "b",
            "sBB4H8CTmIoBZsQ",
            "ffd1a2cd84570458b257bd95fdd8f974",
            "KO9AWqynI7SFOBj",
            "6a66194dcb6e36199cbee2214ecf7213",
        ),
        _histopathology(
            "l",
            "IZgnn1cpBq2PHod",
            "b591833c89754271023e901281dee3f2",
            "oIs6VSmkOp7XrKF",
            "46aab7765d4400e039772d5a50b55c04",
        ),
        _histopathology(
            "h",
            "L7AcvVz7DoWJ2RZ",
            "bd1856dafc156a43fb3aa705f1a6e92e",
            "1qAKxy5H0jgwZvM",
            "3ed9f87e46ad5e16935bd8d722c8dc47",
        ),
    )
)
"""By name. The Segment Anything models: Kirillov et al., arXiv:2304.02643; vit_t: Zhang et al.,
arXiv:2306.14289; lm and em_organelles: Archit et al., doi:10.1038/s41592-024-02580-4."""


def base_weights() -> tuple[BaseWeights, ...]:
    """The models of ``model_types`` that can be downloaded. Their publishers give an XXH128, which
    downloads are compared with, and no SHA-256."""
    return tuple(
        BaseWeights(name=name, source=model.weights.url, licence=model.licence)
        for name, model in PUBLISHED.items()
    )


def models_folder() -> Path:
    """Where downloaded models are kept: in micro-SAM's own cache, ``$MICROSAM_CACHEDIR``."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("MICROSAM_CACHEDIR") or user_cache_dir("micro_sam")) / "models"
