"""Whether two sets of scores of the same images differ by more than chance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FEWEST = 6
"""Pairs from which on a two-sided sign-flip test can give a p below 0.05: 2 / 2**6 = 0.031."""
_FLIPS = 1 << 14
"""Sign flips that are tried at most: all of them for up to 14 pairs, else as many drawn ones."""
_CONFIDENCE = 0.95
_ROUNDING = 1e-12
"""Relative spread below which values are equal but for rounding."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How much higher one set of scores is than another one of the same images or folds."""

    difference: float
    """Mean of the differences."""
    low: float
    """Lower end of its 95 % interval; NaN where there are less than two pairs."""
    high: float
    p: float
    """Two-sided: how probable a mean this far from 0 is if only chance decides which of the two
    scores of a pair is whose. NaN where the pairs do not suffice to say."""
    n: int
    """Number of pairs."""
    remark: str = ""
    """Why there is no p, or what limits it."""


def paired_test(
    a: Mapping[str, float],
    b: Mapping[str, float],
    groups: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
) -> Paired:
    """Compare the scores of the same images under two models, by the difference ``a - b``.

    The differences of the images of one group (the frames of a movie, the fields of a well) are
    averaged first: they are no independent observations. The test is the sign-flip permutation
    test of their mean (Fisher 1935, The Design of Experiments, section 21), which assumes only that
    differences are symmetric about 0 where there is no effect; it is exact for up to 14 pairs. The
    interval is Student's, over the groups.

    Args:
        a: a score by the name of the image; NaN where the image has none.
        b: the same, of the other model.
        groups: what images belong to, by their names; an image that is not in it is its own.
        seed: of the sign flips that are drawn where there are more than 14 pairs.

    Returns:
        Pairs with a NaN are left out. With less than six there is no p, which could not be below
        0.05 whatever the scores are.

    Raises:
        ValueError: the images of ``a`` and ``b`` differ.
    """
    if a.keys() != b.keys():
        raise ValueError("Only scores of the same images can be compared.")
    by_group: dict[str, list[float]] = defaultdict(list)
    for name, value in a.items():
        difference = value - b[name]
        if math.isfinite(difference):
            by_group[(groups or {}).get(name, name)].append(difference)
    differences = [math.fsum(values) / len(values) for values in by_group.values()]
    n = len(differences)
    low, high = _interval(differences, _standard_error(differences), n - 1)
    p, remark = _sign_flip(differences, seed)
    return Paired(difference=_mean(differences), low=low, high=high, p=p, n=n, remark=remark)


def corrected_t_test(
    differences: Sequence[float], train: Sequence[int], test: Sequence[int]
) -> Paired:
    """Compare the scores of the folds of two cross-validations, by their differences.

    Student's t-test with the variance of the mean enlarged to ``(1 / k + n_test / n_train) s**2``,
    because the training sets of the folds overlap: the corrected resampled t-test (Nadeau & Bengio
    2003, doi:10.1023/A:1024068626366).

    Args:
        differences: of the scores of each fold; NaN where a fold has none.
        train: number of images that each fold trains on.
        test: number of images that each fold is judged on.

    Returns:
        Folds with a NaN are left out. There is no p for less than two folds, and where all
        differences are the same.

    Raises:
        ValueError: the lengths differ, or a fold trains on nothing.
    """
    if not len(differences) == len(train) == len(test) or min(train, default=1) < 1:
        raise ValueError("Each fold has a difference, and numbers of images to train and to test.")
    kept = [
        (difference, trained, tested)
        for difference, trained, tested in zip(differences, train, test, strict=True)
        if math.isfinite(difference)
    ]
    values = [difference for difference, _, _ in kept]
    n, error = len(values), _standard_error(values)
    if n < 2:
        remark = f"{_folds(n)} cannot be tested: two are needed at least."
        return Paired(
            difference=_mean(values), low=math.nan, high=math.nan, p=math.nan, n=n, remark=remark
        )
    ratio = sum(tested / trained for _, trained, tested in kept) / n
    error *= math.sqrt(1 + n * ratio)
    low, high = _interval(values, error, n - 1)
    p, remark = math.nan, "all folds differ by the same"
    if error:
        from scipy.stats import t

        p, remark = float(2 * t.sf(abs(_mean(values)) / error, n - 1)), ""
    elif not _mean(values):
        p, remark = 1.0, "no fold differs"
    return Paired(difference=_mean(values), low=low, high=high, p=p, n=n, remark=remark)


def _sign_flip(differences: Sequence[float], seed: int) -> tuple[float, str]:
    """The p of the mean of the differences, and what is to be said about it."""
    n = len(differences)
    if n < FEWEST:
        return math.nan, (
            f"{n} pair{'' if n == 1 else 's'} cannot be tested: a p below 0.05 takes {FEWEST} at "
            "least"
        )
    uneven = sum(value != 0 for value in differences)
    if not uneven:
        return 1.0, "no pair differs"
    import numpy as np
    from scipy.stats import permutation_test

    def mean(values: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(np.mean(values, axis=axis))

    found = permutation_test(
        (np.asarray(differences, np.float64),),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_FLIPS,
        batch=1024,
        rng=np.random.default_rng(seed),
    )
    limit = f"only {uneven} of {n} pairs differ, so p cannot be below {2 / 2**uneven:.2g}"
    return float(found.pvalue), limit if uneven < FEWEST else ""


def _interval(values: Sequence[float], error: float, freedom: int) -> tuple[float, float]:
    """Student's, with as many degrees of freedom."""
    if freedom < 1:
        return math.nan, math.nan
    from scipy.stats import t

    reach = float(t.ppf((1 + _CONFIDENCE) / 2, freedom)) * error
    return _mean(values) - reach, _mean(values) + reach


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values; 0 for less than two."""
    n = len(values)
    if n < 2:
        return 0.0
    mean = _mean(values)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return error if error > _ROUNDING * abs(mean) else 0.0


def _folds(count: int) -> str:
    return f"{count} fold{'' if count == 1 else 's'}"
