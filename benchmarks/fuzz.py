"""Damaged files of every kind under atheris, which looks for the damage that reaches new code.

Each target runs in a process of its own, with limited memory. Whatever is read must end in an error
of cellseg, or in data as its header promises; anything else is a crash: another exception, a
process that dies, an input that takes longer than 20 s, or more memory than there is. Inputs that
crash are kept, and can be tried again.

    python benchmarks/fuzz.py --seconds 30
    python benchmarks/fuzz.py --seconds 600 tiff hdf5
    python benchmarks/fuzz.py --input crash-1234 tiff
"""

from __future__ import annotations

import argparse
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "packages/core/tests"))

from _table import finish, result, table

MEMORY = 6 << 30
"""Bytes of address space; torch alone takes some of them."""
SLOWEST = 20
"""Seconds for one input."""
_EDIT = struct.Struct("<BHH")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--seconds", type=float, default=10, help="for each target")
    parser.add_argument("--crashes", type=Path, default=None, help="folder that keeps inputs")
    parser.add_argument("--input", type=Path, help="try one input again, without atheris")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:  # before anything is imported that is looked into
        _fuzz(given.targets[0], given.seconds, given.crashes)
    from fuzz_targets import TARGETS

    unknown = sorted(set(given.targets) - set(TARGETS))
    if unknown:
        parser.error(f"no target {unknown[0]!r}; there are: {', '.join(TARGETS)}")
    if given.input is not None:
        _again(given.targets[0], given.input)
    else:
        _all(given.targets or list(TARGETS), given.seconds, given.crashes)


def _all(names: list[str], seconds: float, crashes: Path | None) -> None:
    rows: list[list[object]] = [["target", "inputs", "inputs/s", "code reached", "outcome"]]
    found = 0
    folder = crashes or Path(tempfile.mkdtemp(prefix="cellseg-fuzz-"))
    for name in names:
        inputs, code, problem = _one(name, seconds, folder)
        found += bool(problem)
        rows.append([name, inputs, inputs / seconds, code, problem or "no crash"])
        print(f"{name}: {inputs} inputs, {problem or 'no crash'}", flush=True)
    print()
    table(rows)
    if found:
        print(f"The inputs are in {folder}; try one again with --input FILE TARGET.")
    result("crashes", found, "0", not found)
    finish()


def _one(name: str, seconds: float, folder: Path) -> tuple[int, int, str]:
    """Fuzz one target in a process: how many inputs, how much code was reached, and the problem."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--child", "--seconds", str(seconds)]
    child = subprocess.Popen(
        [*command, "--crashes", str(place), name],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        log, _ = child.communicate(timeout=seconds + 10 * SLOWEST)
    except subprocess.TimeoutExpired:
        child.kill()
        log, _ = child.communicate()
        log += "\nit does not end"
    (place / "log.txt").write_text(log)
    done = [int(n) for n in re.findall(r"^#(\d+)\s", log, re.M)]
    code = [int(n) for n in re.findall(r"\bcov: (\d+)", log)]
    return max(done, default=0), max(code, default=0), _problem(log, child.returncode)


def _problem(log: str, code: int | None) -> str:
    if not code and "it does not end" not in log:
        return ""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [
        line
        for line in lines
        if re.match(r"\w+(\.\w+)*(Error|Exception|Warning)\b|==\d+== ?ERROR|it does not end", line)
    ]
    return (telling or lines or [f"exit code {code}"])[0][:100]


def _edits(data: bytes) -> tuple[int, list[tuple[int, int, int]]]:
    """Which file, and what is done to it, at most 16 edits."""
    body = data[1 : 1 + 16 * _EDIT.size]
    whole = len(body) // _EDIT.size * _EDIT.size
    return (data[0] if data else 0), list(_EDIT.iter_unpack(body[:whole]))


def _fuzz(name: str, seconds: float, crashes: Path) -> None:
    import resource
    import warnings

    import atheris

    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["cellseg", "tifffile", "nibabel", "roifile"]):
        from fuzz_targets import TARGETS, Bench

    bench = Bench(TARGETS[name], Path(tempfile.mkdtemp(prefix="cellseg-fuzz-")) / "data")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def once(data: bytes) -> None:
        bench.try_(*_edits(data))

    seeds = crashes / "seeds"
    seeds.mkdir(exist_ok=True)
    for number in range(64):
        picked = bytes((number * 37 * (i + 3) + i) % 256 for i in range(1 + 5 * (1 + number % 4)))
        (seeds / str(number)).write_bytes(picked)
    options = [f"-max_total_time={max(int(seconds), 1)}", f"-timeout={SLOWEST}", "-max_len=81"]
    options += [f"-artifact_prefix={crashes}/", "-rss_limit_mb=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(seeds)], once)
    atheris.Fuzz()  # which ends the process


def _again(name: str, file: Path) -> None:
    from fuzz_targets import TARGETS, Bench

    with tempfile.TemporaryDirectory() as folder:
        which, edits = _edits(file.read_bytes())
        print(f"{name}: file {which}, edits {edits}")
        read = Bench(TARGETS[name], Path(folder) / "data").try_(which, edits)
        print("It is read." if read else "It is refused.")


if __name__ == "__main__":
    main()
