"""Files of vectors: each format written for real and read back, and each way a file can be wrong."""

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from driftline.errors import InvalidInput
from driftline.stream.sources import SourceBatch, open_source

ROWS, DIM = 25, 3
VECTORS = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float32)
NUMBERS = [b"%d" % row for row in range(ROWS)]
NAMES = [f"id-{row}" for row in range(ROWS)]


def read(path: Path, most: int = 10, **names: Any) -> tuple[list[bytes], np.ndarray, list[Any], int | None]:
    with open_source(path, **names) as source:
        batches = list(source.batches(most))
        assert all(len(batch.ids) == len(batch.vectors) <= most for batch in batches)
        assert all(b.vectors.dtype == np.float32 and b.vectors.flags.c_contiguous for b in batches)
        again: list[SourceBatch] = list(source.batches(most))
        assert [batch.ids for batch in again] == [batch.ids for batch in batches]
        ids = [key for batch in batches for key in batch.ids]
        attributes = [each for b in batches for each in b.attributes or [None] * len(b.ids)]
        return ids, np.concatenate([batch.vectors for batch in batches]), attributes, source.rows


def refused(path: Path, says: str, **names: Any) -> None:
    with pytest.raises(InvalidInput, match=says) as error:
        read(path, **names)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i1", "u1"])
def test_npy(tmp_path: Path, dtype: str) -> None:
    """Every component type; ids are row numbers; the file is mapped, not loaded."""
    given = (VECTORS * 20).astype(dtype)
    np.save(tmp_path / "v.npy", given)
    ids, vectors, attributes, rows = read(tmp_path / "v.npy")
    assert (ids, attributes, rows) == (NUMBERS, [None] * ROWS, ROWS)
    np.testing.assert_array_equal(vectors, given.astype(np.float32))


def test_npy_in_column_order(tmp_path: Path) -> None:
    """A Fortran-ordered array comes out as rows all the same."""
    np.save(tmp_path / "v.npy", np.asfortranarray(VECTORS))
    np.testing.assert_array_equal(read(tmp_path / "v.npy")[1], VECTORS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Any) -> None:
    """The first two-dimensional array by default, another by name; ids from an array, or row numbers."""
    others = {"labels": np.arange(ROWS), "texts": np.array(["a"], object)}
    save(tmp_path / "v.npz", **others, base=VECTORS, other=-VECTORS, names=np.array(NAMES))
    ids, vectors, _, rows = read(tmp_path / "v.npz")
    assert (ids, rows) == (NUMBERS, ROWS)
    np.testing.assert_array_equal(vectors, VECTORS)
    ids, vectors, _, _ = read(tmp_path / "v.npz", dataset="other", ids="names")
    assert ids == [name.encode() for name in NAMES]
    np.testing.assert_array_equal(vectors, -VECTORS)
    assert read(tmp_path / "v.npz", ids="labels")[0] == NUMBERS
    refused(tmp_path / "v.npz", "no array 'train'; it holds labels", dataset="train")
    refused(tmp_path / "v.npz", r"shape \(25,\)", dataset="labels")
    refused(tmp_path / "v.npz", r"ids have shape \(25, 3\)", ids="other")
    save(tmp_path / "flat.npz", **others)
    refused(tmp_path / "flat.npz", "no array has the shape")


@pytest.mark.parametrize(("suffix", "dtype"), [(".fvecs", "<f4"), (".bvecs", "u1")])
def test_vecs(tmp_path: Path, suffix: str, dtype: str) -> None:
    """The format of the TEXMEX corpora; every row's stated dimension is checked."""
    path = tmp_path / f"v{suffix}"
    given = (VECTORS * 20).astype(dtype)
    row = b"".join(DIM.to_bytes(4, "little") + one.tobytes() for one in given)
    path.write_bytes(row)
    ids, vectors, _, rows = read(path)
    assert (ids, rows) == (NUMBERS, ROWS)
    np.testing.assert_array_equal(vectors, given.astype(np.float32))
    width = len(row) // ROWS
    path.write_bytes(row[: 17 * width] + b"\x09" + row[17 * width + 1 :])
    refused(path, "row 17 states dimension 9, the first one 3")
    path.write_bytes(row[:-1])
    refused(path, "no rows of the dimension 3")
    for junk in (b"", b"\x03", b"\xff\xff\xff\xff", b"\x00" * 8):
        path.write_bytes(junk)
        refused(path, "no rows of the dimension")
    refused(path, "leave out dataset", dataset="x")


@pytest.mark.parametrize("suffix", [".hdf5", ".h5"])
def test_hdf5(tmp_path: Path, suffix: str) -> None:
    """ann-benchmarks' layout: train by default, even when another array stands first; compressed chunks."""
    path = tmp_path / f"v{suffix}"
    with h5py.File(path, "w") as file:
        file["distances"] = np.zeros((2, 2))
        file.create_dataset("train", data=VECTORS, compression="gzip", chunks=(7, DIM))
        file["test"] = -VECTORS
        file["names"] = NAMES
        file["deep/inside"] = VECTORS * 2
    assert read(path)[0] == NUMBERS
    np.testing.assert_array_equal(read(path)[1], VECTORS)
    ids, vectors, _, rows = read(path, dataset="test", ids="names")
    assert (ids, rows) == ([name.encode() for name in NAMES], ROWS)
    np.testing.assert_array_equal(vectors, -VECTORS)
    np.testing.assert_array_equal(read(path, dataset="deep/inside")[1], VECTORS * 2)
    refused(path, "no dataset 'deep'; it holds", dataset="deep")
    path.write_bytes(b"not hdf5 at all")
    refused(path, "cannot be read")


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float16(), DIM)]
)
def test_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    """Lists of any width and of fixed size; id and attributes from columns; nulls left out; row groups."""
    given = VECTORS.astype(kind.value_type.to_pandas_dtype())
    table = pa.table(
        {
            "id": pa.array(NAMES),
            "vector": pa.array([list(row) for row in given], kind),
            "lang": pa.array(["en", None] * 12 + ["de"]).dictionary_encode(),
            "n": pa.array(range(ROWS)),
            "tags": pa.array([["a", "b"]] * ROWS),
        }
    )
    path = tmp_path / "v.parquet"
    pq.write_table(table, path, row_group_size=7)
    ids, vectors, attributes, rows = read(path)
    assert (ids, rows) == ([name.encode() for name in NAMES], ROWS)
    np.testing.assert_array_equal(vectors, given.astype(np.float32))
    assert attributes[:2] == [{"lang": "en", "n": 0, "tags": ["a", "b"]}, {"n": 1, "tags": ["a", "b"]}]
    assert read(path, ids="n")[0] == NUMBERS
    refused(path, "no single column 'embedding'; it has id, vector, lang", dataset="embedding")
    refused(path, "column lang is", dataset="lang")
    refused(path, "must be text, bytes or an integer", ids="tags")


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([[1.0, 2.0], [3.0]]), "row 1 of these has 1 components, others 2"),
        (pa.array([[1.0, 2.0], None]), "is null"),
        (pa.array([[1.0, 2.0], [3.0, None]]), "is null"),
        (pa.array([[1, 2], [3, 4]]), "components are int64"),
        (pa.array([["a"], ["b"]]), "components are object|lists of numbers"),
        (pa.array([1.0, 2.0]), "vectors need lists of numbers"),
        (pa.array([[], []], pa.list_(pa.float32())), "0 components"),
    ],
)
def test_parquet_columns_that_are_no_vectors(tmp_path: Path, column: pa.Array, says: str) -> None:
    """Ragged, null, textual and integer lists are refused with the column and the rows."""
    pq.write_table(pa.table({"vector": column}), tmp_path / "v.parquet")
    refused(tmp_path / "v.parquet", says)


def test_parquet_columns_that_are_no_attributes(tmp_path: Path) -> None:
    """What JSON cannot say is refused before anything is read; without an id column, rows are numbered."""
    path = tmp_path / "v.parquet"
    vector = pa.array([[1.0, 2.0]])
    for bad in (pa.array([b"x"]), pa.array([1], pa.timestamp("us")), pa.array([[b"x"]])):
        pq.write_table(pa.table({"vector": vector, "extra": bad}), path)
        refused(path, "column extra: .* cannot be an attribute")
    pq.write_table(pa.table({"vector": vector}), path)
    assert read(path)[0] == [b"0"]
    path.write_bytes(b"PAR1 and then nothing")
    refused(path, "cannot be read")


def test_jsonl(tmp_path: Path) -> None:
    """Ids as text or integers, attributes, blank lines; the fields may have other names."""
    path = tmp_path / "v.jsonl"
    lines = [
        {"id": NAMES[i], "vector": row.tolist(), "attributes": {"n": i}} for i, row in enumerate(VECTORS)
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    ids, vectors, attributes, rows = read(path)
    assert (ids, rows) == ([name.encode() for name in NAMES], None)
    np.testing.assert_array_equal(vectors, VECTORS)
    assert attributes == [{"n": i} for i in range(ROWS)]
    path.write_text('{"key": 7, "embedding": [1, 2.5]}\n{"key": "b", "embedding": [3, 4]}\n')
    ids, vectors, attributes, _ = read(path, dataset="embedding", ids="key")
    assert (ids, vectors.tolist(), attributes) == ([b"7", b"b"], [[1.0, 2.5], [3.0, 4.0]], [None, None])
    path.write_text('{"vector": [1]}\n{"vector": [2]}\n')
    assert read(path)[0] == [b"0", b"1"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"vector": [1, 2', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1, 2]", "no JSON object"),
        ('{"vector": [1]}', "1 components, lines before it 2"),
        ('{"vector": [1, "2"]}', "list of numbers"),
        ('{"vector": [1, true]}', "list of numbers"),
        ('{"vector": [1, ' + "1" * 400 + "]}", "cannot be read"),
        ('{"vector": []}', "list of numbers"),
        ('{"id": 3}', "list of numbers"),
        ('{"vector": [1, 2], "id": 1.5}', "id 1.5"),
        ('{"vector": [1, 2], "id": "\\ud800"}', "must be text"),
        ('{"vector": [1, 2], "lang": "en"}', "unknown field 'lang'"),
        ('{"vector": [1, 2], "attributes": [1]}', "attributes must be an object"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: str, says: str) -> None:
    """A wrong line is refused with its number; the good batch before it has come out."""
    path = tmp_path / "v.jsonl"
    path.write_text('{"vector": [1, 2]}\n' + line + "\n")
    with open_source(path) as source:
        batches = source.batches(1)
        assert next(batches).ids == [b"0"]
        with pytest.raises(InvalidInput, match=says):
            next(batches)


def test_wrong_files(tmp_path: Path) -> None:
    """Missing files, unknown extensions, pickles, wrong shapes and types, damage: all InvalidInput."""
    refused(tmp_path / "v.npy", "no such file")
    refused(tmp_path / "v.csv", r"extension '.csv' is not one of .npy")
    np.save(tmp_path / "flat.npy", VECTORS[0])
    refused(tmp_path / "flat.npy", r"has shape \(3,\); vectors need")
    np.save(tmp_path / "int.npy", np.zeros((2, 2), np.int64))
    refused(tmp_path / "int.npy", "components are int64; they must be one of float16")
    np.save(tmp_path / "pickle.npy", np.array([[{}]], object), allow_pickle=True)
    refused(tmp_path / "pickle.npy", "cannot be read")
    np.savez(tmp_path / "v.npz", VECTORS)
    (tmp_path / "v.npz").rename(tmp_path / "named.npy")
    refused(tmp_path / "named.npy", "cannot be read: .* not a .npy file|magic string")
    np.save(tmp_path / "v.npy", VECTORS)
    (tmp_path / "v.npy").rename(tmp_path / "named.npz")
    refused(tmp_path / "named.npz", "is no .npz file")
    for name in ("junk.npy", "junk.npz"):
        (tmp_path / name).write_bytes(b"junk")
        refused(tmp_path / name, "cannot be read")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and then nothing")
    refused(tmp_path / "cut.npz", "cannot be read")
    np.savez_compressed(tmp_path / "hole.npz", VECTORS)
    damaged = bytearray((tmp_path / "hole.npz").read_bytes())
    damaged[80:160] = bytes(80)
    (tmp_path / "hole.npz").write_bytes(damaged)
    refused(tmp_path / "hole.npz", "cannot be read")
    (tmp_path / "latin.jsonl").write_bytes(b'{"vector": [1], "id": "\xe9"}')
    refused(tmp_path / "latin.jsonl", "cannot be read")


@pytest.mark.parametrize(("suffix", "module"), [(".hdf5", "h5py"), (".parquet", "pyarrow")])
def test_missing_extras_say_how_to_install_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, module: str
) -> None:
    """Without h5py or pyarrow: the sentence names the package and the extra."""
    path = tmp_path / f"v{suffix}"
    path.touch()
    monkeypatch.setitem(sys.modules, module, None)
    refused(path, rf"needs {module}: pip install 'driftline\[files\]'")
