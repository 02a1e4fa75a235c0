"""A prediction killed at any moment, or stopped by a full disk, comes out as if undisturbed."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cellseg.errors import StorageError
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings

HERE = Path(__file__).parent
KILLS = 20
FORMATS = ("tiff", "csv", "geojson", "hdf5", "ome-zarr")
# One process that serves as many predictions as it is forked for: no import is paid twice.
SERVER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import cc3d, cv2, engine_fakes, h5py, imagecodecs, scipy.sparse.csgraph, tifffile, zarr
import cellseg.engine.run, cellseg.intensity, cellseg.ome.probabilities
import cellseg.outputs.geojson, cellseg.outputs.hdf5, cellseg.outputs.table
from pathlib import Path
imagecodecs.lz4_encode, imagecodecs.lz4_decode, imagecodecs.zlib_encode
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
plugins = engine_fakes.plugins()
for line in sys.stdin:
    images, out, resume = line.split()
    child = os.fork()
    if not child:
        settings = PredictSettings(
            backend="likely", reader="npy", output=Path(out), resume=resume == "resume",
            output_probs=True,
            format=("tiff", "csv", "geojson", "hdf5", "ome-zarr"),
        )
        try:
            predict(
                plugins, Path(images), settings, options={"sleep": 0.004}, reader_options={},
                emit=lambda event: None,
            )
        except BaseException as error:
            sys.stderr.write(repr(error))
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import engine_fakes

    return engine_fakes


@pytest.fixture
def images(tmp_path, fakes):
    folder = tmp_path / "images"
    folder.mkdir()
    np.save(folder / "a.npy", fakes.discs((300, 260)))
    np.save(folder / "b.npy", fakes.discs((100, 90), seed=1))
    for frame in range(2):
        np.save(folder / f"m#{frame:03d}.npy", fakes.discs((170, 180), seed=2 + frame))
    return folder


def digest(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != ".cellseg"
    }


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork and SIGKILL")
def test_killed_at_twenty_moments(images, tmp_path):
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, HERE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )

    def ask(out, how, kill_after=None):
        server.stdin.write(f"{images} {out} {how}\n")
        pid, began = int(server.stdout.readline()), time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
        return int(server.stdout.readline()), time.monotonic() - began

    try:
        assert ask(tmp_path / "warm", "fresh")[0] == 0
        code, seconds = ask(tmp_path / "undisturbed", "fresh")
        assert code == 0
        expected = digest(tmp_path / "undisturbed")
        assert len(expected) > 20
        rng = random.Random(7)
        killed, places = 0, set()
        for number in range(KILLS):
            out = tmp_path / f"killed{number}"
            # One kill in each twentieth of the run, wherever it then is.
            moment = (number + rng.random()) / KILLS * seconds
            code, _ = ask(out, "fresh", moment)
            killed += code == -9
            work = out / ".cellseg"
            places.add(sum(1 for _ in out.rglob("*")))
            # What is there under a final name is whole: it is what the undisturbed run wrote.
            for name, value in digest(out).items() if out.exists() else ():
                if not any(part.startswith(".part-") for part in Path(name).parts):
                    assert expected[name] == value, (number, name)
            code, _ = ask(out, "resume" if (work / "request.json").exists() else "fresh")
            assert code == 0
            assert digest(out) == expected, f"after a kill at {moment:.3f} s"
            shutil.rmtree(out)
        assert killed >= KILLS * 3 // 4
        assert len(places) > KILLS // 3
    finally:
        server.stdin.close()
        server.wait(timeout=30)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(100, 90), (300, 260)])
def test_full_disk(small_disk, tmp_path, fakes, format, shape):
    folder = tmp_path / "images"
    folder.mkdir()
    np.save(folder / "a.npy", fakes.discs(shape))
    settings = PredictSettings(
        backend="flat", reader="npy", output=small_disk / "out", format=(format,)
    )

    def go(**values):
        return predict(
            fakes.plugins(),
            folder,
            settings.model_copy(update=values),
            options={},
            reader_options={},
            emit=lambda event: None,
        )

    go(output=tmp_path / "elsewhere")
    expected = digest(tmp_path / "elsewhere")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (1 << 19))
    with pytest.raises(StorageError, match="disk is full") as caught:
        go()
    assert str(small_disk) in str(caught.value)
    # Then with room for the state, and for tile after tile, but at first not for the result.
    failed = 0
    for pages in range(2, 128, 3):
        ballast.write_bytes(b"")
        ballast.write_bytes(b"x" * ((127 - pages) * 4096))
        try:
            go(resume=(small_disk / "out" / ".cellseg" / "request.json").exists())
            break
        except StorageError as error:
            failed += 1
            assert "disk is full" in str(error)
            assert str(small_disk) in str(error)
            visible = [p.name for p in small_disk.iterdir() if p.name != "ballast"]
            assert visible in ([], ["out"])
            if visible:
                found = digest(small_disk / "out")
                assert found.items() <= expected.items()
    assert failed > 0
    assert digest(small_disk / "out") == expected
