"""Files that hold vectors as one array: .npy, .npz, .hdf5, .fvecs, .bvecs."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from .source import Source, SourceBatch, check_components, id_bytes, import_extra, reading, row_numbers

__all__ = ["open_hdf5", "open_npy", "open_npz", "open_vecs"]


@contextmanager
def open_npy(path: Path, dataset: str | None, ids: str | None) -> Generator[Source]:
    """NumPy's own: mapped, so that only the rows of a batch are in memory."""
    refuse_names(path, dataset, ids)
    with reading(path):
        array = np.lib.format.open_memmap(path, mode="r")
    yield array_source(path, str(path), array, None)


@contextmanager
def open_npz(path: Path, dataset: str | None, ids: str | None) -> Generator[Source]:
    """Several arrays in one archive; the chosen one is loaded whole."""
    with reading(path), path.open("rb") as file:  # numpy leaves files open that it cannot read
        archive: Any = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InvalidInput(f"{path}: is no .npz file, whatever its name")
        with archive:
            two = (name for name in archive.files if array_of(archive, name).ndim == 2)
            name = dataset or next(two, None)
            array = array_of(archive, pick(path, "array", name, archive.files))
            keys = None if ids is None else array_of(archive, pick(path, "array", ids, archive.files))
    yield array_source(path, f"{path}: array {name}", array, keys)


def array_of(archive: Any, name: str) -> NDArray[Any]:
    """An array of an archive; an empty one for objects, which would have to be unpickled."""
    try:
        return archive[name]
    except ValueError:
        return np.empty(0, object)


@contextmanager
def open_hdf5(path: Path, dataset: str | None, ids: str | None) -> Generator[Source]:
    """HDF5 as ann-benchmarks has it: `train` holds the vectors; read from disk batch by batch."""
    h5py = import_extra("h5py", "h5py", path)
    with reading(path):
        file = h5py.File(path, "r")
    with file:
        names = [name for name, item in file.items() if isinstance(item, h5py.Dataset)]
        two = [name for name in names if file[name].ndim == 2]
        name = dataset or ("train" if "train" in two else next(iter(two), None))
        found = {
            each: file[each] for each in (name, ids) if each and isinstance(file.get(each), h5py.Dataset)
        }
        array = found[pick(path, "dataset", name, found, names)]
        keys = None if ids is None else found[pick(path, "dataset", ids, found, names)]
        yield array_source(path, f"{path}: dataset {name}", array, keys)


@contextmanager
def open_vecs(path: Path, dataset: str | None, ids: str | None) -> Generator[Source]:
    """Rows of a little-endian int32 dimension and as many float32 (.fvecs) or uint8 (.bvecs), mapped."""
    refuse_names(path, dataset, ids)
    component = np.dtype("<f4" if path.suffix.lower() == ".fvecs" else "u1")
    with reading(path):
        size = path.stat().st_size
        with path.open("rb") as file:
            dim = int.from_bytes(file.read(4), "little", signed=True)
        width = 4 + dim * component.itemsize
        if size < 4 or dim < 1 or size % width:
            raise InvalidInput(
                f"{path}: {size} bytes are no rows of the dimension {dim} that its first row states"
            )
        raw = np.memmap(path, np.uint8, "r", shape=(size // width, width))

    def batches(most: int) -> Iterator[SourceBatch]:
        for first in range(0, len(raw), most):
            rows = np.ascontiguousarray(raw[first : first + most])
            stated = rows[:, :4].copy().view("<i4")[:, 0]
            if (stated != dim).any():
                row = int((stated != dim).argmax())
                raise InvalidInput(
                    f"{path}: row {first + row} states dimension {stated[row]}, the first one {dim}"
                )
            vectors = rows[:, 4:].copy().view(component).astype(np.float32)
            yield SourceBatch(row_numbers(first, len(rows)), vectors, None)

    yield Source(len(raw), batches)


def array_source(path: Path, where: str, array: Any, keys: Any) -> Source:
    """Batches of anything that slices like an array: a mapped file, a loaded array, an HDF5 dataset."""
    if array.ndim != 2 or array.shape[1] == 0:
        raise InvalidInput(f"{where}: has shape {tuple(array.shape)}; vectors need [rows, dim]")
    check_components(where, array.dtype)
    if keys is not None and tuple(keys.shape) != (array.shape[0],):
        raise InvalidInput(f"{path}: ids have shape {tuple(keys.shape)}; {array.shape[0]} rows need as many")

    def batches(most: int) -> Iterator[SourceBatch]:
        for first in range(0, array.shape[0], most):
            with reading(path), np.errstate(over="ignore", invalid="ignore"):
                vectors = np.array(array[first : first + most], np.float32, order="C")
            if keys is None:
                ids = row_numbers(first, len(vectors))
            else:
                ids = [
                    id_bytes(f"{path}: row {first + i}", key)
                    for i, key in enumerate(keys[first : first + most])
                ]
            yield SourceBatch(ids, vectors, None)

    return Source(array.shape[0], batches)


def pick(path: Path, kind: str, name: str | None, found: Any, names: Any = None) -> str:
    """The name, if it was found. Raises InvalidInput that lists what there is."""
    there = ", ".join(found if names is None else names) or "nothing"
    if name is None:
        raise InvalidInput(f"{path}: no {kind} has the shape [rows, dim]; it holds {there}")
    if name not in found:
        raise InvalidInput(f"{path}: has no {kind} {name!r}; it holds {there}")
    return name


def refuse_names(path: Path, dataset: str | None, ids: str | None) -> None:
    """Raises InvalidInput where a name was given for a format that holds one nameless array."""
    if dataset is not None or ids is not None:
        raise InvalidInput(
            f"{path}: a {path.suffix} file holds one array without names; leave out dataset and ids"
        )
