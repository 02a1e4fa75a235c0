"""Tells each worker of a cluster, also those that join later, of a prediction. Heavy."""

from __future__ import annotations

from distributed import Worker, WorkerPlugin  # noqa: TID253

from cellseg.engine import cluster_worker
from cellseg.engine.cluster_worker import Sent


class Predicting(WorkerPlugin):
    """On each worker as long as a prediction lasts."""

    def __init__(self, sent: Sent) -> None:
        self._sent = sent

    def setup(self, worker: Worker) -> None:
        """A worker is there, or has joined."""
        cluster_worker.keep(self._sent)

    def teardown(self, worker: Worker) -> None:
        """The prediction has ended."""
        cluster_worker.forget(self._sent.name)
