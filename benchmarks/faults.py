"""Kills and full disks at random moments: what is left, and what a resume makes of it.

Each job runs undisturbed first. Then it is killed (SIGKILL), stopped (SIGTERM) or out of disk at
random moments: after some seconds, or at the k-th change of the file system. After each blow every
file must be whole. Then the job goes on as a user would go on, is perhaps struck again, and must
end with the files of the undisturbed run; what was finished must not be done again.

    python benchmarks/faults.py --moments 100 --seed 1 --job predict
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

from _faults import Ended, Fault, Zygote, damaged, digests, make_data, passing, small_disk
from _table import finish, result, table

AGAIN = 0.3
"""How often a run that goes on is struck, too."""
NEEDS = {"export": "train", "export onnx": "train vista2d"}  # whose models they use
MOST = 4
"""Runs after which the job is left to end."""
TINY = (
    "--feature-size 4 --emb-dim 4 --levels 2 --num-classes 2 --patch-size 32 --batch-size 4 "
    "--patches-per-image 4 --val-patches 2 --checkpoint-every 2 --save-top-k 2 --num-workers 0 "
    "--epochs 2"
).split()


@dataclass(frozen=True)
class Job:
    """A command, and how it goes on.

    Args:
        name: what it is called here.
        start: the command; ``{out}`` is where it writes.
        again: the same, for when ``begun`` is there.
        begun: a file in its output from which on it can be resumed; empty where it is only
            started again.
        changing: a pattern of files that differ between two undisturbed runs.
        share: how many moments it gets, of those asked for.
        by_change: whether the process that changes files is the one that is struck; else it is
            a new one, with workers, and struck by the clock.
    """

    name: str
    start: Sequence[str]
    again: Sequence[str] = ()
    begun: str = ""
    changing: str = "$^"
    share: float = 1.0
    by_change: bool = True

    @property
    def folder(self) -> str:
        return self.name.replace(", ", "-").replace(" ", "-")

    def command(self, out: Path) -> list[str]:
        """What a user types who finds what is there."""
        words = self.again if self.begun and (out / self.begun).exists() else self.start
        return [word.replace("{out}", str(out)) for word in words]


@dataclass
class Count:
    """Moments of one job and one kind of fault."""

    tried: int = 0
    struck: int = 0
    survived: int = 0
    """Of those in which something struck before the job was done."""
    wrong: list[str] = field(default_factory=list)

    def add(self, struck: bool, wrong: Sequence[str]) -> None:
        """How a moment ended."""
        self.tried += 1
        self.struck += struck
        self.survived += struck and not wrong


def jobs(base: Path) -> list[Job]:
    """All jobs; the exports are of the models that the trainings leave undisturbed."""
    data, images, device = str(base / "data"), str(base / "images"), ["--device", "cpu"]
    formats = ("tiff", "csv", "geojson", "hdf5", "ome-zarr")
    segment = ["predict", images, "--backend", "otsu", "--tile-size", "64", "--halo", "8"]
    segment += [word for name in formats for word in ("--format", name)]
    shared = [*segment, "--workers", "2"]
    search = "--search sigma=0.5,2 --search min_size=10,30 --sampler grid --epochs 3".split()
    begin, model = ["train", data, *device], str(base / "{}" / "undisturbed")
    request, out = ".cellseg/request.json", ["-o", "{out}"]
    run = (
        ["resume", "{out}"],
        "run.json",
        r"events\.jsonl|report\.html|.*\.ckpt|checkpoint/state.*",
    )
    shown = r"study\.db|report\.html|trials\.csv|trials/.*"
    written = ["--overwrite", "-o"]
    return [
        Job("train", [*begin, "--backend", "otsu", "--epochs", "4", *out], *run),
        Job("predict", [*segment, *out], [*segment, *out, "--resume"], request),
        Job("export", ["export", model.format("train"), *written, "{out}/m.zip"], share=0.5),
        Job("augment", ["augment", data, *out, "--copies", "1"], share=0.3),
        Job(
            "tune",
            ["tune", data, "--backend", "otsu", *device, *search, *out],
            ["resume", "{out}"],
            "tune.json",
            shown,
            share=0.2,
        ),
        Job(
            "predict, 2 workers",
            [*shared, *out],
            [*shared, *out, "--resume"],
            request,
            share=0.1,
            by_change=False,
        ),
        Job("train vista2d", [*begin, "--backend", "vista2d", *TINY, *out], *run, share=0.4),
        Job(
            "export onnx",
            ["export", model.format("train-vista2d"), "--format", "onnx", *written, "{out}/m.onnx"],
            share=0.2,
        ),
    ]


class Campaign:
    """All faults of one job.

    Args:
        job: what is struck.
        zygote: starts runs.
        base: a folder for what they write.
        seed: of all that is random.
    """

    def __init__(self, job: Job, zygote: Zygote, base: Path, seed: int) -> None:
        self.job, self.zygote, self.base = job, zygote, base
        self.random = random.Random(f"{seed} {job.name}")
        self.counts: dict[str, Count] = {}
        first, second = base / "warm", base / "undisturbed"
        fresh = not job.by_change
        if fresh:
            zygote.run(job.command(first), fresh=True)
        else:
            zygote.warm(job.command(first))
        self.usual = zygote.run(job.command(second), fresh=fresh)
        if self.usual.code:
            raise SystemExit(f"{job.name} ended with {self.usual.code}: {self.usual.text}")
        self.wanted = self.fixed(second)
        if self.fixed(first) != self.wanted:
            raise SystemExit(f"{job.name}: two undisturbed runs differ.")
        self.size = sum(path.stat().st_size for path in second.rglob("*") if path.is_file())

    def fixed(self, out: Path) -> dict[str, str]:
        """What must be the same in each run."""
        every, changing = digests(out), self.job.changing
        found = {name: sum for name, sum in every.items() if not re.fullmatch(changing, name)}
        return found | ({"scores": scores(out / "trials.csv")} if self.job.name == "tune" else {})

    def tell(self) -> None:
        """How it went, at once."""
        counts, usual = self.counts.values(), self.usual
        lived, tried = sum(c.survived for c in counts), sum(c.struck for c in counts)
        text = f"{self.job.name}: {lived} of {tried}; undisturbed {usual.seconds:.2f} s, "
        print(f"{text}{usual.changes} changes, {self.size} bytes", file=sys.stderr, flush=True)

    def kill(self, moments: int) -> None:
        """Strike at so many moments."""
        kinds = ["SIGKILL, change", "SIGTERM, change", "SIGKILL, time", "SIGTERM, time"]
        weights = [5, 2, 2, 1] if self.job.by_change else [0, 0, 2, 1]
        for number in range(moments):
            kind = self.random.choices(kinds, weights)[0]
            count = self.counts.setdefault(kind, Count())
            # One moment in each part of the run, so that no part of it is left out.
            self.one(kind, (number + self.random.random()) / moments, count)

    def fault(self, kind: str, part: float) -> Fault:
        """What strikes at a part of the run."""
        number = getattr(signal, kind.partition(",")[0])
        if kind.endswith("time"):
            return Fault(number, seconds=part * self.usual.seconds)
        late = number == signal.SIGKILL and self.random.random() < 0.4
        change = 1 + int(part * self.usual.changes)
        return Fault(number, change=change, late=self.random.uniform(1e-5, 5e-3) if late else 0.0)

    def one(self, kind: str, part: float, count: Count) -> None:
        """Strike once or more, and let it go on until it ends."""
        out = self.base / "out"
        wrong: list[str] = []
        blows: list[str] = []
        for number in range(MOST + 1):
            fault: Fault | None = None
            if number == 0:
                fault = self.fault(kind, part)
            elif number < MOST and self.random.random() < AGAIN:
                fault = self.fault(kind, self.random.random())
            blows += [str(fault)] if fault else []
            before = Before.of(out)
            ended = self.zygote.run(self.job.command(out), fault, fresh=not self.job.by_change)
            wrong += self.look(out, before, ended, fault)
            if ended.code == 0:
                break
        wrong += self.compare(out)
        count.add(number > 0, wrong)
        if wrong:
            count.wrong.append(f"{'; '.join(blows)}: {'; '.join(dict.fromkeys(wrong))}")
        shutil.rmtree(out, ignore_errors=True)

    def look(self, out: Path, before: Before, ended: Ended, fault: Fault | None) -> list[str]:
        """What is wrong after a run."""
        wrong = self.zygote.ask(partial(damaged, out))
        wrong += before.lost(ended, out)
        if ended.orphans:
            wrong.append(f"{ended.orphans} processes outlive it")
        expected = {0}
        if fault is not None and fault.signal == signal.SIGKILL:
            expected |= {-signal.SIGKILL, -signal.SIGALRM}
        elif fault is not None:
            expected |= {-signal.SIGTERM, 130}
        if ended.code not in expected:
            wrong.append(f"it ended with {ended.code}: {ended.text[-1500:]}")
        if ended.code in (0, 130):  # a signal may come while it tidies up: a lock hinders nobody
            left = [name for name in leftovers(out) if not ended.code or ".lock" not in name]
            wrong += [f"{name} is left" for name in left]
        return wrong

    def compare(self, out: Path) -> list[str]:
        """Where the end differs from that of the undisturbed run."""
        found = self.fixed(out)
        names = sorted(found.keys() | self.wanted.keys())
        return [f"{name} differs" for name in names if found.get(name) != self.wanted.get(name)]

    def fill(self, moments: int, resize: Callable[[int], None], disk: Path) -> None:
        """Let so many disks run full."""
        count = self.counts.setdefault("full disk", Count())
        for number in range(moments):
            part = (number + self.random.random()) / moments
            size = 4096 * max(2, int(1.2 * part * self.size / 4096))
            out = disk / "out"
            wrong: list[str] = []
            resize(size)
            struck = False
            for _ in range(40):
                before = Before.of(out)
                ended = self.zygote.run(self.job.command(out), fresh=not self.job.by_change)
                full = ended.code == 7 and "disk is full" in ended.text
                wrong += self.zygote.ask(partial(damaged, out)) + before.lost(ended, out)
                if ended.code not in (0, 7) or (ended.code and not full):
                    wrong.append(f"it ended with {ended.code}: {ended.text[-1500:]}")
                if ended.code == 0:
                    break
                struck = True
                wrong += [f"{name} is left" for name in leftovers(out)]
                size += 4096 * self.random.randint(2, max(4, int(self.size / 4096)))
                resize(size)
            wrong += self.compare(out)
            count.add(struck, wrong)
            if wrong:
                count.wrong.append(f"{size} bytes: {'; '.join(dict.fromkeys(wrong))}")
            for entry in disk.iterdir():
                shutil.rmtree(entry)


@dataclass(frozen=True)
class Before:
    """What was finished before a run."""

    records: frozenset[str]
    step: int
    resumed: int
    """How often it had gone on."""

    @classmethod
    def of(cls, out: Path) -> Before:
        """Look at an output."""
        work = out / ".cellseg"
        records = [*work.glob("items/*/*.tile"), *work.glob("done/*.json")]
        return cls(frozenset(str(path) for path in records), _checkpoint(out), len(_resumed(out)))

    def lost(self, ended: Ended, out: Path) -> list[str]:
        """What was finished, and was done again all the same."""
        twice = sorted(self.records.intersection(ended.recorded))
        wrong = [f"{Path(name).name} was done again" for name in twice]
        for step in _resumed(out)[self.resumed :]:
            if step != self.step:
                wrong.append(f"went on after step {step}, not {self.step}")
        return wrong


def scores(table: Path) -> str:
    """The options and scores of all trials, in the order of the options."""
    rows = csv.DictReader(table.read_text().splitlines())
    return str(sorted((r["sigma"], r["min_size"], r["state"], r["score"]) for r in rows))


def _checkpoint(out: Path) -> int:
    """The step after which a training has to go on."""
    steps = [int(path.name.split("-")[1]) for path in out.glob("checkpoint/step-*.ckpt")]
    steps += [len(json.loads(path.read_text())) for path in out.glob("checkpoint/state.json")]
    return max(steps, default=0)


def _resumed(out: Path) -> list[int]:
    """The steps after which a training went on."""
    log = out / "events.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    events = [json.loads(line) for line in lines]
    return [int(event["step"]) for event in events if event["event"] == "Resumed"]


def leftovers(out: Path) -> list[str]:
    """Half-written files where nothing may be left of them."""
    return [str(path.relative_to(out)) for path in out.rglob("*") if passing(path.relative_to(out))]


def report(campaigns: Sequence[Campaign]) -> None:
    """The table, what went wrong, and the results."""
    counts = {(c.job.name, kind): count for c in campaigns for kind, count in c.counts.items()}
    rows = [(*name, c.tried, c.struck, c.survived) for name, c in counts.items()]
    table([("job", "fault", "moments", "struck", "survived"), *rows])
    for (job, kind), count in counts.items():
        for text, times in Counter(count.wrong).most_common(20):
            print(f"{job}, {kind} ({times}): {text}", flush=True)
    for name, full in (("kills_survived", False), ("full_disks_survived", True)):
        chosen = [count for (_, kind), count in counts.items() if (kind == "full disk") == full]
        struck = sum(count.struck for count in chosen)
        lived = sum(count.survived for count in chosen)
        if chosen:
            fine = lived == struck and not any(count.wrong for count in chosen)
            result(name, lived, f"={struck}", fine)


def main() -> None:
    """Strike."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--moments", type=int, default=100, help="of each job")
    parser.add_argument("--disks", type=int, default=20, help="that run full, of each job")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--job", action="append", help="only this one; may be repeated")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())  # with what is done so far
    done: list[Campaign] = []
    try:
        with tempfile.TemporaryDirectory(prefix="cellseg-faults-") as name:
            strike(Path(name), given, done)
    finally:
        report(done)
    finish()


def strike(base: Path, given: argparse.Namespace, done: list[Campaign]) -> None:
    """All jobs that are asked for; ``done`` gets those that are struck."""
    zygote = Zygote(base / "zygote")
    zygote.ask(lambda: [str(make_data(base))])
    for job in jobs(base):
        wanted = given.job is None or job.name in given.job
        if not wanted and job.name not in {NEEDS.get(name) for name in given.job}:
            continue
        campaign = Campaign(job, zygote, base / job.folder, given.seed)
        if not wanted:
            continue
        done.append(campaign)
        campaign.kill(max(1, round(job.share * given.moments)))
        with small_disk(base / "disk") as resize:
            if resize is not None and given.disks:
                campaign.fill(max(1, round(job.share * given.disks)), resize, base / "disk")
        campaign.tell()


if __name__ == "__main__":
    main()
