"""Kernels and strides follow the voxels' shape and the patch."""

from __future__ import annotations

from typing import Any

import pytest

from cellseg.errors import ConfigError
from cellseg_vista.levels import Architecture, notes, plan_levels, receptive_field

FLAT, FULL = (1, 3, 3), (3, 3, 3)
HALF, ALL = (1, 2, 2), (2, 2, 2)
CREMI, SNEMI, NUCLEI = (0.04, 0.004, 0.004), (0.03, 0.006, 0.006), (0.28, 0.127, 0.127)


def planned(**changes: Any) -> Architecture:
    values: dict[str, Any] = {
        "channels": 1,
        "feature_size": 8,
        "emb_dim": 3,
        "num_classes": 2,
        "dims": 3,
        "encoder": "unet",
        "deep_supervision": 0,
        "levels": 4,
        "spacing": CREMI,
        "patch": (32, 128, 128),
    }
    return Architecture.planned(**{**values, **changes})


@pytest.mark.parametrize(
    ("spacing", "kernels", "strides"),
    [
        ((0.008, 0.008, 0.008), [FULL] * 4, [ALL] * 3),
        (CREMI, [FLAT, FLAT, FLAT, FULL], [HALF] * 3),
        (SNEMI, [FLAT, FLAT, FULL, FULL], [HALF, HALF, ALL]),
        (NUCLEI, [FLAT, FULL, FULL, FULL], [HALF, ALL, ALL]),
        ((2.0, 1.0, 1.0), [FLAT, FULL, FULL, FULL], [HALF, ALL, ALL]),
        ((1.99, 1.0, 1.0), [FULL] * 4, [ALL] * 3),
        ((1.0, 4.0, 1.0), [(3, 1, 3)] * 2 + [FULL] * 2, [(2, 1, 2)] * 2 + [ALL]),
        ((8.0, 4.0, 1.0), [(1, 1, 3)] * 2 + [FLAT, FULL], [(1, 1, 2)] * 2 + [HALF]),
    ],
)
def test_flat_voxels_are_pooled_sideways_first(
    spacing: tuple[float, ...], kernels: list[Any], strides: list[Any]
) -> None:
    assert plan_levels(spacing, (32, 128, 128), 4, 3) == (tuple(kernels), tuple(strides))


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e3])
def test_the_unit_of_the_spacing_does_not_matter(unit: float) -> None:
    scaled = [size * unit for size in SNEMI]
    assert plan_levels(scaled, (32, 128, 128), 4, 3) == plan_levels(SNEMI, (32, 128, 128), 4, 3)


@pytest.mark.parametrize("patch", [(1, 192, 192), (192, 192)])
def test_planes_are_treated_alike_in_y_and_x(patch: tuple[int, ...]) -> None:
    kernels, strides = plan_levels((1.0, 5.0, 0.5), patch, 4, 2)
    assert kernels == ((3, 3),) * 4
    assert strides == ((2, 2),) * 3


def test_an_axis_is_not_pooled_further_than_the_patch_allows() -> None:
    """Along z, 8 voxels become 4 and 2; y and x go on, however coarse they are by then."""
    kernels, strides = plan_levels((1, 1, 1), (8, 128, 128), 6, 3)
    assert strides == (ALL, ALL, HALF, HALF, HALF)
    assert kernels == (FULL,) * 6


def test_a_patch_of_one_plane_is_not_convolved_across() -> None:
    kernels, strides = plan_levels((1, 1, 1), (1, 64, 64), 3, 3)
    assert (kernels, strides) == ((FLAT,) * 3, (HALF,) * 2)


def test_levels_that_no_patch_can_have_are_refused() -> None:
    assert len(plan_levels((1, 1, 1), (1, 16, 16), 4, 2)[0]) == 4
    with pytest.raises(ConfigError, match="16 x 16 can be halved 3 times") as caught:
        plan_levels((1, 1, 1), (1, 16, 16), 5, 2)
    assert "--levels 4" in str(caught.value.hint)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (float("nan"), 1, 1)])
@pytest.mark.parametrize("encoder", ["unet", "segresnet_ds"])
def test_a_spacing_must_be_positive(spacing: tuple[float, ...], encoder: str) -> None:
    with pytest.raises(ValueError, match="not positive"):
        planned(spacing=spacing, encoder=encoder)


@pytest.mark.parametrize("spacing", [(1, 1, 1), CREMI, SNEMI, NUCLEI, (1, 4, 1)])
def test_segresnet_ds_is_planned_as_the_unet(spacing: tuple[float, ...]) -> None:
    unet, other = (planned(encoder=name, spacing=spacing) for name in ("unet", "segresnet_ds"))
    assert (unet.kernels, unet.strides) == (other.kernels, other.strides)


def test_segresnet_has_even_strides_and_the_user_learns_it() -> None:
    architecture = planned(encoder="segresnet")
    assert architecture.strides == (ALL,) * 3
    (note,) = notes(architecture, CREMI)
    assert "10 times as long as wide, but segresnet has the same kernels" in note
    assert notes(planned(encoder="segresnet", spacing=(1, 1, 1)), (1, 1, 1)) == ()
    assert notes(planned(encoder="segresnet", dims=2), CREMI) == ()


@pytest.mark.parametrize("encoder", ["segresnet", "segresnet_ds"])
def test_an_encoder_that_would_pad_every_patch_is_refused(encoder: str) -> None:
    even = {"encoder": encoder, "spacing": (1, 1, 1), "patch": (16, 128, 128)}
    assert planned(**even, levels=4).smallest == (16, 16, 16)
    with pytest.raises(ConfigError, match=r"--levels 5 .* at least 32 x 32 x 32, not 16 x 128"):
        planned(**even, levels=5)


def test_the_user_learns_of_flat_kernels() -> None:
    (note,) = notes(planned(), CREMI)
    assert "1x3x3, 1x3x3, 1x3x3, 3x3x3; strides between levels: 1x2x2, 1x2x2, 1x2x2" in note


def test_the_receptive_field_is_known_for_the_unet_alone() -> None:
    assert receptive_field(planned(spacing=(1, 1, 1))) == (76, 76, 76)
    assert receptive_field(planned()) == (4, 76, 76)
    assert receptive_field(planned(encoder="segresnet_ds")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "resnet"}, "--encoder resnet is unknown; there are unet, segresnet"),
        ({"encoder": "segresnet", "deep_supervision": 1}, "goes with --encoder unet or segresnet"),
        ({"deep_supervision": 3}, "2 coarser levels with --levels 4"),
        ({"levels": 2, "deep_supervision": 1}, "0 coarser levels with --levels 2"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"dims": 4},
        {"dims": 3},
        {"strides": ((2, 2),) * 2},
        {"strides": ((2, 2), (2, 3), (2, 2))},
        {"kernels": ((3, 3), (3, 3), (3, 3), (5, 3))},
    ],
)
def test_an_impossible_architecture_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Architecture(**{"channels": 1, "feature_size": 8, "emb_dim": 3, **changes})
