"""Published models: where their files are, their checksums and licences. Light.

The files and checksums are those that micro-SAM names, and lie where micro-SAM puts them, so that
neither downloads what the other has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cellseg.download.remote import Remote
from cellseg.specs import PublishedModel

_META = "https://dl.fbaipublicfiles.com/segment_anything"
_GWDG = "https://owncloud.gwdg.de/index.php/s"
_ZOO = "https://uk1s3.embassy.ebi.ac.uk/public-datasets/bioimage.io"
_APACHE = "Apache-2.0"
_BY = "CC-BY-4.0"
_UNKNOWN = "not known to cellseg; ask its authors before you redistribute it"


_MICROSAM = "doi:10.1038/s41592-024-02580-4"
_SAM = "arXiv:2304.02643"


def models_folder() -> Path:
    """Where downloaded models are kept: in micro-SAM's own cache, ``$MICROSAM_CACHEDIR``."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("MICROSAM_CACHEDIR") or user_cache_dir("micro_sam")) / "models"


def _published(
    name: str,
    url: str,
    checksum: str,
    licence: str,
    citation: str,
    *,
    decoder: tuple[str, str] | None = None,
    size: int | None = None,
    more: str = "",
) -> tuple[str, PublishedModel]:
    """The weights of Segment Anything, and where a model has one, micro-SAM's decoder for automatic
    segmentation after them."""
    files = [Remote(url=url, name=name, size=size, checksum=f"xxh128:{checksum} {more}".strip())]
    if decoder is not None:
        url, checksum = decoder
        files.append(Remote(url=url, name=f"{name}_decoder", checksum=f"xxh128:{checksum}"))
    return name, PublishedModel(
        name=name, licence=licence, files=tuple(files), folder=models_folder, citation=citation
    )


def _meta(
    name: str, start: str, checksum: str, sha256: str, size: int
) -> tuple[str, PublishedModel]:
    """A model of Meta, who puts the first digits of the MD5 into the name of the file. micro-SAM
    states the XXH128, and in its first versions the SHA-256."""
    return _published(
        name,
        f"{_META}/sam_{name}_{start}.pth",
        checksum,
        _APACHE,
        _SAM,
        size=size,
        more=f"sha256:{sha256} md5-prefix:{start}",
    )


def _zoo(name: str, record: str, checksum: str, decoder: str) -> tuple[str, PublishedModel]:
    """A generalist in the BioImage Model Zoo."""
    base = f"{_ZOO}/{record}/files/{name[:5]}"
    decoders = (f"{base}_decoder.pt", decoder)
    return _published(name, f"{base}.pt", checksum, _BY, _MICROSAM, decoder=decoders)


def _histopathology(
    size: str, file: str, checksum: str, decoder_file: str, decoder: str
) -> tuple[str, PublishedModel]:
    """A generalist of PathoSAM (Griebel et al.)."""
    return _published(
        f"vit_{size}_histopathology",
        f"{_GWDG}/{file}/download",
        checksum,
        _UNKNOWN,
        "arXiv:2502.00408",
        decoder=(f"{_GWDG}/{decoder_file}/download", decoder),
    )


PUBLISHED: Mapping[str, PublishedModel] = dict(
    (
        _meta(
            "vit_b",
            "01ec64",
            "6923c33df3637b6a922d7682bfc9a86b",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            375042383,
        ),
        _meta(
            "vit_l",
            "0b3195",
            "a82beb3c660661e3dd38d999cc860e9a",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            1249524607,
        ),
        _meta(
            "vit_h",
            "4b8939",
            "97698fac30bd929c2e6d8d8cc15933c2",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            2564550879,
        ),
        _published(
            "vit_t",
            f"{_GWDG}/TuDzuwVDHd1ZDnQ/download",
            "8eadbc88aeb9d8c7e0b4b60c3db48bd0",
            _APACHE,
            "arXiv:2306.14289",
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
"""By name. Segment Anything: Kirillov et al.; vit_t: Zhang et al.; lm and em_organelles: Archit et
al.; histopathology: Griebel et al."""
