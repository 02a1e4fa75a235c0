"""The conformance tests pass for a backend that learns from examples, and catch faults of one."""

from __future__ import annotations

from pathlib import Path

import example_fakes
import pytest

from cellseg import testing
from cellseg.specs import TrainerSpec
from cellseg.testing import BackendTests


@pytest.fixture(autouse=True, scope="module")
def fakes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing, "Plugins", example_fakes.plugins)
        yield


class TestShown(BackendTests):
    backend = "shown"
    # It is a fresh process that lists installed plugins, and this one is not installed.
    test_the_plugin_imports_nothing_heavy = None


def test_a_job_has_examples_and_nothing_else(tmp_path: Path) -> None:
    trainer = example_fakes.plugins().get(TrainerSpec, "shown")
    job = TestShown._job(trainer, tmp_path, 2)
    assert not job.train and not job.val and job.epochs == 1
    assert [len(image.examples) for image in job.examples] == [6, 6]
    assert all(image.sample.labels is None for image in job.examples)
    for image in job.examples:
        for one in image.examples:
            z, y, x = one.corner
            h, w = one.mask.shape
            inside = image.sample.image[0, z, y : y + h, x : x + w][one.mask]
            assert inside.min() > 0.5  # the mask lies on a disc
