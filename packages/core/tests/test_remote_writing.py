"""Predictions at addresses: the same files as on this computer, in an order that hides halves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import engine_fakes
import numpy as np
import pytest
import remote_sites
import zarr
from engine_fakes import blobs, discs
from remote_sites import below, counted, files, upload, web_site
from test_readers_ome_zarr import multiscales

from cellseg.errors import DataError, StorageError, UsageError
from cellseg.events import Note
from cellseg.locations import location
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.predict_summary import PredictSummary

METADATA = (".zgroup", ".zattrs", ".zarray", "zarr.json")
LABELS = ("labels/cells/.zattrs", "labels/cells/zarr.json")
LISTS = ("labels/.zattrs", "labels/zarr.json")
KINDS = ("plate.zarr", "tiled.zarr", "volume.zarr")
S3, MEMORY = "s3://bucket", "memory://bucket"  # the same code, of which the second is quick
Predict = Callable[..., PredictSummary]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plate of six fields, an image of several tiles and levels, and a volume."""
    root = tmp_path_factory.mktemp("images")
    plate = zarr.open_group(root / "plate.zarr", mode="w", zarr_format=2)
    wells = ["A/1", "B/2", "B/3"]
    plate.attrs["plate"] = {"wells": [{"path": well} for well in wells]}
    for number, well in enumerate(wells):
        for field in range(2):
            image = discs((60, 64), seed=2 * number + field)[:, 0]
            write(root / "plate.zarr" / well / str(field), [image], "cyx", 2)
        about = {"images": [{"path": "0"}, {"path": "1"}]}
        zarr.open_group(root / "plate.zarr" / well, mode="a", zarr_format=2).attrs["well"] = about
    large = discs((150, 170))[:, 0]
    write(root / "tiled.zarr", [large, large[:, ::2, ::2], large[:, ::4, ::4]], "cyx", 3)
    write(root / "volume.zarr", [blobs((6, 70, 80), fill=0.2)], "czyx", 2)
    return root


def write(path: Path, levels: list[np.ndarray], axes: str, zarr_format: int) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    names = [str(number) for number in range(len(levels))]
    for name, pixels in zip(names, levels, strict=True):
        chunks = (1,) * (pixels.ndim - 2) + (64, 64)
        with zarr.config.set({"array.write_empty_chunks": True}):
            group.create_array(name, data=pixels, chunks=chunks)
    about = multiscales(axes, [1.0] * len(axes), names)
    if zarr_format == 3:
        about["version"] = "0.5"
    group.attrs.update(about if zarr_format == 2 else {"ome": about})


@pytest.fixture(scope="module", autouse=True)
def store() -> Iterator[str]:
    with remote_sites.s3_server() as host:
        yield host


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    files(MEMORY).store.clear()


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path: Path) -> Predict:
    plugins = engine_fakes.plugins()

    def started(images: Path, **settings: object) -> PredictSummary:
        emit = settings.pop("emit", lambda event: None)
        wanted = {"tile_size": 48, "halo": 16, "backend": "deep", **settings}
        return predict(
            plugins, images, PredictSettings(**wanted), options={}, reader_options={}, emit=emit
        )

    return started


def on_disk(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and ".cellseg" not in str(file.relative_to(folder))
    }


@pytest.fixture(scope="module")
def expected(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images with the labels that a prediction on this computer gives them."""
    root = tmp_path_factory.mktemp("expected")
    for name in KINDS:
        shutil.copytree(images / name, root / name)
        settings = PredictSettings(tile_size=48, halo=16, backend="deep")
        summary = predict(
            engine_fakes.plugins(), root / name, settings, options={}, emit=lambda event: None
        )
        assert summary.objects > 10
    return root


@pytest.mark.parametrize(
    ("name", "base"), [("plate.zarr", S3), ("tiled.zarr", S3), ("volume.zarr", MEMORY)]
)
def test_labels_in_the_images_are_those_of_a_local_prediction(
    name: str, base: str, images: Path, expected: Path, run: Predict
) -> None:
    where = location(upload(images / name, f"inside/{name}", base))
    with counted() as requests:
        summary = run(where)
    assert below(where) == on_disk(expected / name)
    assert str(summary.outputs[0]).startswith(str(where))
    group = zarr.open_group(f"{summary.outputs[0]}", mode="r")  # by zarr alone
    assert group["0"][...].max() > 1
    if name == "plate.zarr":
        # Each field is read once: its metadata, and a chunk. Then: what is there? And 4 files.
        assert len(requests.made) < 6 * 30 + 20
    if base == S3:
        written = [url.partition(f"{name}/")[2] for url in requests.of("PUT")]
        own = [one for one in written if name != "plate.zarr" or one.startswith("A/1/0/")]
        first = next(i for i, one in enumerate(own) if one.endswith(METADATA))
        assert first and not any(one.endswith(METADATA) for one in own[:first])
        assert all(one.endswith(METADATA) for one in own[first:])
        last = [one for one in own if one.endswith((*LABELS, *LISTS))]
        assert last[0].endswith(LABELS) and own[-1] == last[1] and own[-1].endswith(LISTS)


def test_labels_elsewhere(images: Path, tmp_path: Path, run: Predict) -> None:
    where = location(upload(images / "plate.zarr", base=MEMORY))
    run(images / "plate.zarr", output=tmp_path / "near", format=("ome-zarr",))
    near = on_disk(tmp_path / "near")
    assert len(near) > 6 * 4
    run(images / "plate.zarr", output=f"{S3}/from-here")
    assert below(f"{S3}/from-here") == near
    run(where, output=f"{MEMORY}/from-there")
    assert below(f"{MEMORY}/from-there") == near
    run(where, output=tmp_path / "fetched", format=("ome-zarr", "csv", "tiff"))
    fetched = on_disk(tmp_path / "fetched")
    assert {k: v for k, v in fetched.items() if k in near} == near
    assert len([name for name in fetched if name.endswith((".csv", ".tif"))]) == 12


@pytest.mark.parametrize("name", ["tiled.zarr", "volume.zarr"])
def test_probabilities(name: str, images: Path, tmp_path: Path, run: Predict) -> None:
    how = {"backend": "likely", "output_probs": True}
    shutil.copytree(images / name, tmp_path / name)
    run(tmp_path / name, **how)
    where = upload(images / name, f"likely/{name}", MEMORY)
    run(location(where), **how)
    assert below(where) == on_disk(tmp_path / name)
    run(location(where), **how, output=f"{MEMORY}/likely-out")
    assert any("ome.zarr/cells_probabilities/0/" in one for one in below(f"{MEMORY}/likely-out"))


@pytest.mark.slow
def test_two_workers(images: Path, expected: Path, run: Predict) -> None:
    where = upload(images / "tiled.zarr", "two/tiled.zarr")
    run(location(where), workers=2)
    assert below(where) == on_disk(expected / "tiled.zarr")


class Crash(BaseException):
    """As if the process were killed."""


@pytest.mark.parametrize(("name", "at"), [("tiled.zarr", 7), ("plate.zarr", 4)])
def test_a_crash_while_writing(
    name: str, at: int, images: Path, expected: Path, run: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cellseg import remote, remote_stores

    where = upload(images / name, f"crash/{name}", MEMORY)
    put = remote_stores.WritingStore.set
    chunks = []

    async def set(self: object, key: str, value: object) -> None:
        if not key.endswith(METADATA):
            chunks.append(key)
        if len(chunks) >= at:
            patch.setattr(remote, "remove_below", lambda *a, **k: None)  # nobody tidies up
            raise Crash
        await put(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(remote_stores.WritingStore, "set", set)
        with pytest.raises(Crash):
            run(location(where))
    left = below(where)
    begun = {key.partition("labels/cells/")[0] for key in left if "labels/cells/" in key}
    whole = {key.partition("labels/cells/")[0] for key in left if key.endswith(LABELS)}
    listed = {key.partition("labels/")[0] for key in left if key.endswith(LISTS)}
    assert whole == listed  # what is half written is no image, and in no list
    if name == "tiled.zarr":
        assert begun == {""} and not whole
    stray = f"{where}/{min(set_of(left, expected / name))}labels/cells/9/9/9"
    files(where).pipe_file(stray, b"of a try before that one")
    run(location(where), resume=True)
    assert below(where) == on_disk(expected / name)


def set_of(left: dict[str, bytes], expected: Path) -> set[str]:
    """The images whose labels are not whole."""
    missing = on_disk(expected).keys() - left.keys()
    return {key.partition("labels/")[0] for key in missing if key.endswith(LABELS)}


def test_an_error_while_writing_leaves_nothing(
    images: Path, run: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    where = upload(images / "tiled.zarr", "error/tiled.zarr")
    before = below(where)
    put = s3fs.S3FileSystem._pipe_file

    async def refused(self: object, path: str, *more: object, **how: object) -> object:
        if path.endswith("labels/cells/0/c/1/1"):
            raise PermissionError("Access Denied")
        return await put(self, path, *more, **how)

    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", refused)
    with pytest.raises(StorageError, match=r"s3://bucket/error/.*access is denied") as caught:
        run(location(where))
    assert "AWS_PROFILE" in str(caught.value.hint)
    assert below(where) == before


def test_overwriting(expected: Path, run: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    from cellseg import remote_stores

    where = upload(expected / "tiled.zarr", "over/tiled.zarr", MEMORY)
    zarr.consolidate_metadata(where)
    files(where).pipe_file(f"{where}/labels/cells/0/c/40/40", b"of larger labels")
    with pytest.raises(UsageError, match=rf"{where}/labels/cells exists"):
        run(location(where))
    put, seen = remote_stores.WritingStore.set, set()

    async def set_(self: object, key: str, value: object) -> None:
        now = below(where)
        listed = tuple(json.loads(now["labels/zarr.json"])["attributes"]["ome"]["labels"])
        kept = json.loads(now["zarr.json"])["consolidated_metadata"]["metadata"]
        seen.add((listed, "labels/cells" in kept, "labels/cells/zarr.json" in now))
        await put(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(remote_stores.WritingStore, "set", set_)
        run(location(where), overwrite=True)
    assert seen == {((), False, False)}  # nobody sees old labels while they are replaced
    ours, theirs = below(where), on_disk(expected / "tiled.zarr")
    assert ours.pop("zarr.json") != theirs.pop("zarr.json")
    assert ours == theirs
    again = zarr.open_consolidated(where)
    assert again["labels/cells/0"].shape == (150, 170)
    run(location(where), label_name="more")
    names = json.loads(below(where)["labels/zarr.json"])["attributes"]["ome"]["labels"]
    assert names == ["cells", "more"]
    assert zarr.open_consolidated(where)["labels/more/0"].shape == (150, 170)


def test_where_unfinished_work_is(
    images: Path, tmp_path: Path, run: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []

    def emit(event: object) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    run(images / "volume.zarr", output=f"{MEMORY}/work-a", emit=emit)
    (folder,) = (tmp_path / "cache/cellseg/work").iterdir()
    assert folder.name.startswith("bucket-work-a-")
    assert any(str(folder) in note and "--work" in note for note in notes)
    notes.clear()
    run(images / "volume.zarr", output=f"{MEMORY}/work-b", work=tmp_path / "mine", emit=emit)
    run(images / "volume.zarr", output=tmp_path / "out", work=tmp_path / "mine", emit=emit)
    assert len(list((tmp_path / "mine").iterdir())) == 2
    assert not (tmp_path / "out" / ".cellseg").exists()
    assert not any("Unfinished" in note for note in notes)
    again = run(images / "volume.zarr", output=f"{MEMORY}/work-a", resume=True, emit=emit)
    assert again.objects and any("done already" in note for note in notes)


def test_what_cannot_be_written(images: Path, run: Predict) -> None:
    with pytest.raises(UsageError, match="--format tiff: only OME-Zarr can be written to s3://b"):
        run(images / "volume.zarr", output="s3://bucket/no", format=("ome-zarr", "tiff"))
    with pytest.raises(UsageError, match="nothing can be written by http"):
        run(images / "volume.zarr", output="http://127.0.0.1:9/no")
    with web_site(images) as site:
        where = location(f"{site.address}/volume.zarr")
        with pytest.raises(UsageError, match="nothing can be written by http"):
            run(where)
        assert run(where, output=f"{MEMORY}/by-http").objects
    with pytest.raises(DataError, match="no such bucket"):
        run(images / "volume.zarr", output="s3://no-such/out")
    with pytest.raises(UsageError, match="give a folder, not a file"):
        run(images / "volume.zarr", output="s3://bucket/out.tif")
    assert not below(f"{S3}/no")


def test_embedding_what_is_there(tmp_path: Path) -> None:
    import embedding_fakes

    near = embedding_fakes.write_plate(tmp_path / "plate.zarr", ["B/03"], discs((90, 100))[0, 0])
    far = location(upload(near, base=MEMORY))
    labels = f"{MEMORY}/elsewhere"
    for where, out in ((near, None), (far, None), (far, labels)):
        embedding_fakes.segment(where, out)
    embedding_fakes.run(near, tmp_path / "near")
    embedding_fakes.run(far, tmp_path / "inside")
    embedding_fakes.run(far, tmp_path / "beside", labels=labels)
    expected = embedding_fakes.vectors(tmp_path / "near")
    assert len(expected) > 4
    for name in ("inside", "beside"):
        assert np.array_equal(embedding_fakes.vectors(tmp_path / name), expected)
