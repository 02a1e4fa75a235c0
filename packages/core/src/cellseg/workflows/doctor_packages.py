"""What ``cellseg doctor`` says of installed packages: versions, extras and conflicts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions, requires

from cellseg.diagnosis import installed, unmet
from cellseg.specs import Finding

CORE = "cellseg-core"
FOR = {
    "torch": "networks on PyTorch; backends that train them bring it",
    "sam": "backends on Segment Anything",
    "sam2": "backends on SAM 2",
    "track": "cellseg track",
    "tune": "cellseg tune",
    "cluster": "cellseg submit, cellseg predict --slurm",
    "remote": "images at s3:// and https:// addresses",
    "geff": "tracks as GEFF",
    "export": "exports to ONNX and bioimage.io",
    "nifti": "volumes in NIfTI files",
    "testing": "tests of your own backend",
}
"""What the extras of core are for."""
_SAM = ("segment-anything", "segment-anything-py")
_MEND_SAM = (
    "uv pip uninstall segment-anything segment-anything-py"
    ' && uv pip install "segment-anything-py>=1.0.1"'
)
_OPENCV = (
    "opencv-python", "opencv-contrib-python", "opencv-python-headless",
    "opencv-contrib-python-headless",
)  # fmt: skip


def packages(others: Iterable[str] = ()) -> Iterator[Finding]:
    """Core, what it needs, its extras, and packages that do not go together.

    Args:
        others: the distributions of the plugins.
    """
    for name in dict.fromkeys((CORE, "cellseg-cli", "torch", "lightning", "numpy", *others)):
        yield from _version(name)
    rest = []
    for name in _needs(CORE):
        found = installed(name)
        if found is None:
            yield Finding("problem", name, "not installed", f"uv pip install {name}")
        elif name != "numpy":
            rest.append(f"{name} {found}")
    yield Finding("ok", "what core needs", ", ".join(rest))
    for extra, use in FOR.items():
        yield _extra(extra, use)
    yield from conflicts()


def conflicts() -> Iterator[Finding]:
    """Packages that take each other's files, or were built for different versions of CUDA."""
    wrong, right = (installed(name) for name in _SAM)
    if wrong is not None:
        beside = f" beside segment-anything-py {right}" if right else ""
        value = f"{wrong} is installed{beside}; it has the same modules, and squashes images"
        yield Finding("problem", "segment-anything", value, _MEND_SAM)
    several = [name for name in _OPENCV if installed(name)]
    if len(several) > 1:
        keep = "opencv-python-headless"
        advice = (
            f"uv pip uninstall {' '.join(name for name in several if name != keep)}"
            f" && uv pip install --force-reinstall {keep}"
        )
        value = f"{' and '.join(several)} have the same files; the last one installed counts"
        yield Finding("warning", "opencv", value, advice)
    yield from _cuda()


def _version(name: str) -> Iterator[Finding]:
    found = installed(name)
    if found is None:
        if name == "torch":
            yield Finding("ok", name, "not installed; backends that train networks bring it")
        elif name in (CORE, "numpy"):
            yield Finding("problem", name, "not installed", f"uv pip install {name}")
        return
    missing = list(unmet(name))
    if missing:
        quoted = " ".join(f'"{each.split(" (")[0]}"' for each in missing)
        advice = f"uv pip install {quoted}"
        yield Finding("problem", name, f"{found}, which needs {', '.join(missing)}", advice)
    else:
        yield Finding("ok", name, found)


def _needs(name: str) -> list[str]:
    """What a package always needs, by name."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in (requires(name) if installed(name) else None) or ()]
    return [w.name for w in wanted if w.marker is None or w.marker.evaluate({"extra": ""})]


def _extra(extra: str, use: str) -> Finding:
    what = f"extra {extra}"
    missing = list(unmet(CORE, extra)) if installed(CORE) else []
    if not missing:
        return Finding("ok", what, f"installed, for {use}")
    names = ", ".join(missing)
    install = f'uv pip install "{CORE}[{extra}]"'
    if any("is installed)" in each for each in missing):
        return Finding("warning", what, f"for {use}: needs {names}", install)
    names = names.replace(" (not installed)", "")
    return Finding("ok", what, f"no {names}; for {use}: {install}")


def _cuda() -> Iterator[Finding]:
    """Libraries of two versions of CUDA, and a torchvision for another torch."""
    versions: dict[str, set[str]] = {}
    for one in distributions():
        match = re.fullmatch(r"(nvidia-[a-z-]+)-cu(\d+)", one.name or "")
        if match:
            versions.setdefault(match[1], set()).add(match[2])
    twice = sorted(name for name, found in versions.items() if len(found) > 1)
    reinstall = "uv pip install --force-reinstall torch torchvision --torch-backend=auto"
    if twice:
        of = ", ".join(f"{name} for CUDA {' and '.join(sorted(versions[name]))}" for name in twice)
        advice = f"Make a new environment, or: {reinstall}"
        yield Finding("warning", "CUDA libraries", f"two of the same: {of}", advice)
    builds = {name: installed(name) or "" for name in ("torch", "torchvision")}
    tags = {name: found.partition("+")[2] for name, found in builds.items() if "+" in found}
    if len(tags) == 2 and len(set(tags.values())) > 1:
        value = ", ".join(f"{name} {builds[name]}" for name in tags)
        yield Finding("problem", "torchvision", f"built for another CUDA: {value}", reinstall)
    elif builds["torchvision"] and (missing := list(unmet("torchvision"))):
        value = f"{builds['torchvision']}, which needs {', '.join(missing)}"
        yield Finding("problem", "torchvision", value, reinstall)
