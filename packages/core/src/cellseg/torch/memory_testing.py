"""What a backend on PyTorch does when the memory runs out in the middle of its training.

    class TestMemory(MemoryTests):
        backend = "mybackend"
        train_options = {"feature_size": 8}

For trainers that use ``cellseg.torch.training.fit``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch  # noqa: TID253

from cellseg.events import Event, Note, Progress
from cellseg.plugins import Plugins
from cellseg.specs import Trained, TrainerSpec
from cellseg.testing import BackendTests
from cellseg.torch.stepping import Stepping


class MemoryTests:
    """One step of a batch that does not fit."""

    backend: ClassVar[str]
    """The name of the trainer."""
    train_options: ClassVar[dict[str, Any]] = {}
    """Options of a tiny configuration with random weights, batches of 2."""
    shape: ClassVar[tuple[int, int, int]] = (1, 64, 64)
    device: ClassVar[str] = "cpu"
    difference: ClassVar[float] = 1e-4
    """How far the gradient in parts may be from that of the whole batch, as a part of its length:
    more than rounding where the loss is no mean over samples, or chance is drawn anew."""

    def test_a_step_that_does_not_fit_is_done_in_parts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The training goes on, says so, and its gradient is nearly that of the whole batch."""
        gradients: list[torch.Tensor] = []
        summed = Stepping._summed

        def short(self: Any, at: Any) -> Any:
            found = summed(self, at)
            tensors = [p.grad for p in self._module.parameters() if p.grad is not None]
            gradients.append(torch.cat([one.detach().float().reshape(-1) for one in tensors]))
            if len(gradients) % 2:  # each whole batch; its gradients are thrown away
                raise MemoryError
            return found

        monkeypatch.setattr(Stepping, "_summed", short)
        trainer: TrainerSpec[Any] = Plugins().get(TrainerSpec, self.backend)
        job = BackendTests._job.__func__(type(self), trainer, tmp_path, 1)  # type: ignore[attr-defined]
        changes = {"batch_size": 2, "accumulate": 1, "fast_dev_run": True, "clip": 0.0}
        job = replace(job, options=job.options.model_copy(update=changes))
        events: list[Event] = []
        assert isinstance(trainer.train(job, events.append), Trained)
        assert any(isinstance(event, Progress) for event in events)
        notes = [event.text for event in events if isinstance(event, Note)]
        assert any("batches of 2 are done as 1 + 1" in note for note in notes), notes
        assert len(gradients) >= 2
        for whole, parts in zip(gradients[::2], gradients[1::2], strict=True):
            assert whole.norm() > 0
            found = float((whole - parts).norm() / whole.norm())
            assert found <= self.difference, f"the gradients differ by {found:.2g}"
