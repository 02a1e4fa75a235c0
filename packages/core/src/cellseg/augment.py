"""Random changes of training patches, the same for an image and its labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Labels
from cellseg.errors import ConfigError
from cellseg.patches import background
from cellseg.sampling_options import AugmentOptions

LARGEST = 32766
"""Pixels that a plane may be high and wide, for affine and elastic deformation (of OpenCV)."""
_CUBE = 1.25
"""Voxels whose longest side is at most this many times the shortest count as cubes."""
Float = NDArray[np.float32]
_Map = tuple[Float, Float]
"""For each pixel of the result where it comes from: x, y."""


class Augmentation:
    """Augments patches as the options say; all that is random comes from the generator given.

    Spatial changes move image and labels together: first mirroring and turning, which move whole
    pixels, then one resampling for affine and elastic deformation (image bilinear, labels nearest,
    so that no new id appears). What comes from outside the patch is background: the mean of the
    unlabelled pixels of each channel, and 0 in the labels. Intensities are changed last, in the
    order contrast, brightness, gamma, blur, noise, gain noise, and for each channel by other
    amounts (but blur and gain noise); the amounts of brightness and noise count in standard
    deviations of the channel in this patch, and gain noise multiplies what lies above its minimum,
    so that they suit any normalisation.

    With ``augment_slices="same"`` all planes of a stack undergo the same change, and the stack may
    be mirrored in z; with ``each`` every plane is augmented as a patch of its own.
    """

    def __init__(self, options: AugmentOptions) -> None:
        self.options = options

    def __call__(
        self, image: Float, labels: Labels, rng: np.random.Generator
    ) -> tuple[Float, NDArray[np.uint32]]:
        """Augment one patch.

        Args:
            image: ``(c, z, y, x)`` float32, at most ``LARGEST`` pixels high and wide; not changed.
            labels: ``(z, y, x)``, integers; not changed.
            rng: the same state gives the same result.

        Returns:
            New arrays of the same shapes, float32 and uint32, contiguous.
        """
        ids: NDArray[np.uint32] = labels.astype(np.uint32, copy=False)
        if self.options.augment_slices == "same":
            changed, moved = self._stack(image, ids, rng)
        else:
            planes = [
                self._stack(image[:, z : z + 1], ids[z : z + 1], rng) for z in range(len(ids))
            ]
            changed = np.concatenate([plane for plane, _ in planes], axis=1)
            moved = np.concatenate([plane for _, plane in planes])
        if np.may_share_memory(changed, image):
            changed = changed.copy()
        if np.may_share_memory(moved, labels):
            moved = moved.copy()
        return np.ascontiguousarray(changed), np.ascontiguousarray(moved)

    def _stack(
        self, image: Float, labels: NDArray[np.uint32], rng: np.random.Generator
    ) -> tuple[Float, NDArray[np.uint32]]:
        image, labels = self._flipped(image, labels, rng)
        positions = self._positions(labels.shape[1:], rng)
        if positions is not None:
            image, labels = _resampled(image, labels, positions)
        for change in (self._contrast, self._brightness, self._gamma, self._blur, self._noise):
            image = change(image, rng)
        return self._gain_noise(image, rng), labels

    def _flipped(
        self, image: Float, labels: NDArray[np.uint32], rng: np.random.Generator
    ) -> tuple[Float, NDArray[np.uint32]]:
        chances = rng.random(4)
        quarters = int(rng.integers(1, 4))
        for axis in range(3):
            if chances[axis] < self.options.flip_probability:
                image, labels = np.flip(image, axis + 1), np.flip(labels, axis)
        if chances[3] < self.options.rotate90_probability:
            if labels.shape[1] != labels.shape[2]:
                quarters = 2
            image, labels = np.rot90(image, quarters, (2, 3)), np.rot90(labels, quarters, (1, 2))
        swapping = self.options.swap_depth_probability
        if swapping and rng.random() < swapping:
            axis = int(rng.integers(1, 3))
            if labels.shape[0] != labels.shape[axis]:
                raise ConfigError(
                    "--swap-depth-probability needs patches as deep as high and wide, not"
                    f" {' x '.join(map(str, labels.shape))}."
                )
            image, labels = np.swapaxes(image, 1, 1 + axis), np.swapaxes(labels, 0, axis)
        return image, labels

    def _positions(self, shape: tuple[int, ...], rng: np.random.Generator) -> _Map | None:
        """Where each pixel comes from, in pixels; None where it stays."""
        affine, elastic = rng.random(2)
        positions = None
        if affine < self.options.affine_probability:
            positions = _affine_map(shape, self._matrix(rng))
        if elastic < self.options.elastic_probability and self.options.elastic_strength > 0:
            x, y = positions or _grid(shape)
            spacing, strength = self.options.elastic_spacing, self.options.elastic_strength
            dx, dy = (_smooth(shape, spacing, rng) * np.float32(strength) for _ in range(2))
            positions = x + dx, y + dy
        return positions

    def _matrix(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """From coordinates (x, y) of the result to those of the patch, about its middle."""
        options = self.options
        angle = math.radians(rng.uniform(-1, 1) * options.affine_rotation)
        factor = _between(options.affine_scale, rng)
        shear = math.tan(math.radians(rng.uniform(-1, 1) * options.affine_shear))
        cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
        matrix: NDArray[np.float64] = np.array([[cos, -sin], [sin, cos]]) @ np.array(
            [[1.0, shear], [0.0, 1.0]]
        )
        return matrix

    def _contrast(self, image: Float, rng: np.random.Generator) -> Float:
        if rng.random() >= self.options.contrast_probability:
            return image
        factors = [_between(self.options.contrast_range, rng) for _ in image]
        means = image.mean(axis=(1, 2, 3), keepdims=True)
        changed: Float = (image - means) * _each(factors) + means
        return changed

    def _brightness(self, image: Float, rng: np.random.Generator) -> Float:
        if rng.random() >= self.options.brightness_probability:
            return image
        amounts = rng.uniform(-1, 1, len(image)) * self.options.brightness_range
        return image + _each(amounts) * _spread(image)

    def _gamma(self, image: Float, rng: np.random.Generator) -> Float:
        if rng.random() >= self.options.gamma_probability:
            return image
        exponents = [_between(self.options.gamma_range, rng) for _ in image]
        low = image.min(axis=(1, 2, 3), keepdims=True)
        width = image.max(axis=(1, 2, 3), keepdims=True) - low
        relative = (image - low) / np.where(width > 0, width, 1)
        bent: Float = relative ** _each(exponents) * width + low
        return bent

    def _blur(self, image: Float, rng: np.random.Generator) -> Float:
        if rng.random() >= self.options.blur_probability:
            return image
        import cv2

        sigma = max(float(rng.uniform(0, self.options.blur_sigma)), 0.1)
        return _by_plane(
            image,
            lambda plane: cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101),
        )

    def _noise(self, image: Float, rng: np.random.Generator) -> Float:
        if rng.random() >= self.options.noise_probability:
            return image
        sigmas = rng.uniform(0, self.options.noise_sigma, len(image))
        noise = rng.standard_normal(image.shape, np.float32)
        noise *= _each(sigmas) * _spread(image)
        return image + noise

    def _gain_noise(self, image: Float, rng: np.random.Generator) -> Float:
        chance = self.options.gain_noise_probability
        if not chance or rng.random() >= chance:
            return image
        low = image.min(axis=(1, 2, 3), keepdims=True)
        factors = rng.random(image.shape, np.float32)
        factors = 1 + np.float32(self.options.gain_noise_range) * (2 * factors - 1)
        changed: Float = (image - low) * factors + low
        return changed


def are_cubes(spacing: Sequence[float]) -> bool:
    """Whether voxels of this size (of each axis, in any unit) look alike from all sides."""
    return max(spacing) <= _CUBE * min(spacing)


def _between(largest: float, rng: np.random.Generator) -> float:
    """A factor from ``1 / largest`` to ``largest``, as often below 1 as above."""
    return float(largest ** rng.uniform(-1, 1))


def _each(values: list[float] | NDArray[np.float64]) -> Float:
    """One value for each channel, to go with ``(c, z, y, x)``."""
    return np.asarray(values, np.float32)[:, None, None, None]


def _spread(image: Float) -> Float:
    """Standard deviation of each channel."""
    deviation: Float = image.std(axis=(1, 2, 3), keepdims=True)
    return deviation


def _by_plane(image: Float, change: Callable[[Float], Float]) -> Float:
    planes = image.reshape(-1, *image.shape[2:])
    changed = np.empty(planes.shape, np.float32)
    for number, plane in enumerate(planes):
        changed[number] = change(np.ascontiguousarray(plane))
    return changed.reshape(image.shape)


def _grid(shape: tuple[int, ...]) -> _Map:
    y, x = np.indices(shape, np.float32)
    return x, y


def _affine_map(shape: tuple[int, ...], matrix: NDArray[np.float64]) -> _Map:
    y = np.arange(shape[0], dtype=np.float32)[:, None] - np.float32((shape[0] - 1) / 2)
    x = np.arange(shape[1], dtype=np.float32)[None, :] - np.float32((shape[1] - 1) / 2)
    (a, b), (c, d) = matrix.astype(np.float32)
    middle_y, middle_x = np.float32((shape[0] - 1) / 2), np.float32((shape[1] - 1) / 2)
    return a * x + b * y + middle_x, c * x + d * y + middle_y


def _smooth(shape: tuple[int, ...], spacing: float, rng: np.random.Generator) -> Float:
    """Noise of about unit variance (less between its knots) that changes over ``spacing``.

    Bounded to 2 standard deviations, so that a strength of a fourth of the spacing seldom folds.
    """
    import cv2

    knots = [max(math.ceil(length / spacing), 1) + 2 for length in shape]
    coarse = np.clip(rng.standard_normal(knots, np.float32), -2, 2)
    fine: Float = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return fine


def _resampled(
    image: Float, labels: NDArray[np.uint32], positions: _Map
) -> tuple[Float, NDArray[np.uint32]]:
    """Image and labels at other positions, background where those lie outside."""
    import cv2

    x, y = positions
    outside = background(image, labels)
    moved = np.empty(image.shape, np.float32)
    for channel, value in enumerate(outside):
        for z, plane in enumerate(image[channel]):
            moved[channel, z] = cv2.remap(
                np.ascontiguousarray(plane),
                x,
                y,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=float(value),
            )
    found = np.empty(labels.shape, np.uint32)
    for z, plane in enumerate(labels):
        # Ids travel as four bytes each: OpenCV knows no uint32, and float32 cannot hold them.
        quads = np.ascontiguousarray(plane).view(np.uint8).reshape(*plane.shape, 4)
        bytes_ = cv2.remap(
            quads, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0
        )
        found[z] = bytes_.view(np.uint32)[..., 0]
    return moved, found
