"""Label images and probabilities as HDF5 files, written block by block."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.data import ZYX
from cellseg.outputs.images import place, with_classes
from cellseg.outputs.result import Result, output_file


def write_hdf5(result: Result, path: Path) -> None:
    """Write an HDF5 file with the data set ``labels``: uint32, gzip, in chunks.

    Its attributes are ``axes`` (such as ``zyx``) and ``spacing_um`` of the spatial axes. Where
    there are probabilities, they are the data set ``probabilities``: float32, precise to 11 bits,
    with an axis ``c`` and, where the classes have names, the attribute ``classes``.
    """
    with output_file(path) as temporary, _SteadyFile(temporary) as file:
        _fill(file, result)
        file.check()


def _fill(target: _SteadyFile, result: Result) -> None:
    import h5py

    z, y, x = (min(b, n, 1024) for b, n in zip(result.block, result.shape, strict=True))
    with h5py.File(target, "w") as file:
        labels = _dataset(file, result, result.axes, (z, y, x))
        for frame, where, ids in result.blocks((z, y, x)):
            key, block = place(result.axes, frame, where.slices, ids)
            labels[key] = block
            if target.error is not None:
                return
        if not result.probabilities:
            return
        axes, classes = with_classes(result.axes), result.probabilities[0].shape[0]
        probabilities = _dataset(file, result, axes, (z, y, x), classes)
        for frame, kind, where, values in result.probability_blocks((z, y, x)):
            at, some = place(axes, frame, where.slices, values, kind)
            probabilities[at] = some
            if target.error is not None:
                return


def _dataset(file: Any, result: Result, axes: str, block: ZYX, classes: int = 0) -> Any:
    """An empty data set for labels or, with ``classes``, for probabilities."""
    sizes = {"t": len(result.frames), "c": classes} | dict(zip("zyx", result.shape, strict=True))
    chunk = {"t": 1, "c": 1} | dict(zip("zyx", block, strict=True))
    data = file.create_dataset(
        "probabilities" if classes else "labels",
        tuple(sizes[axis] for axis in axes),
        np.float32 if classes else np.uint32,
        chunks=tuple(chunk[axis] for axis in axes),
        compression="gzip",
        compression_opts=1,
        shuffle=True,
    )
    data.attrs["axes"] = axes
    spatial = [s for a, s in zip("zyx", result.spacing, strict=True) if a in axes]
    data.attrs["spacing_um"] = spatial
    if classes and len(result.classes) == classes:
        data.attrs["classes"] = list(result.classes)
    return data


class _SteadyFile(io.RawIOBase):
    """A file for h5py that keeps the first error of a write instead of raising it.

    The HDF5 library may crash the process after a write that failed, because it tries again
    when it closes. So it is told that all is well, and the error is raised afterwards.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._file = path.open("w+b", buffering=0)

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self.error is not None:
            raise self.error

    def write(self, data: Any, /) -> int:
        """Write all of ``data``, unless a write failed before."""
        view = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(view):
            try:
                done += self._file.write(view[done:])
            except OSError as error:
                self.error = error
        return len(view)

    def readinto(self, buffer: Any, /) -> int:
        """Read what was written."""
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place."""
        return self._file.tell()

    def truncate(self, size: int | None = None, /) -> int:
        """Set the length of the file."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
