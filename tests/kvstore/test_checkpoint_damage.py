"""Files that are no checkpoints, damaged, forged, or cannot be written: an error everywhere, nothing changes."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvstore
from kvstore import optimizer, sparse
from kvstore.checkpoint import archive
from pslite.errors import CheckpointError, ConfigError, PSError

DATA = np.arange(1000, dtype=np.float32).reshape(40, 25)


def trained(kv: Any) -> Any:
    kv.set_optimizer(optimizer.Adam(learning_rate=0.1))
    kv.init("w", DATA)
    kv.init("table", sparse.zeros((20, 4), "float32"))
    kv.push("w", np.ones_like(DATA))
    kv.push("table", sparse.row_sparse_array((np.ones((2, 4), np.float32), [3, 7]), (20, 4)))
    return kv


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint's bytes."""
    path = tmp_path_factory.mktemp("checkpoint") / "good"
    trained(kvstore.create("local")).save(path)
    return path.read_bytes()


def state(kv: Any) -> Any:
    return kv.pull("w").tobytes(), kv.row_sparse_pull("table", row_ids=np.arange(20)).data.tobytes(), kv.version("w")


@pytest.fixture(scope="module")
def refuses() -> Callable[[Path], str]:
    """Asserts that a local store cannot load a file, and is as before; returns the reason."""
    kv = trained(kvstore.create("local"))

    def check(path: Path) -> str:
        before = state(kv)
        with pytest.raises(CheckpointError) as caught:
            kv.load(path)
        assert state(kv) == before
        return caught.value.reason

    return check


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {name: file.read(name) for name in file.namelist()}


def packed(parts: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return out.getvalue()


def forged(good: bytes, change: Callable[[dict[str, Any]], Any], **arrays: bytes) -> bytes:
    """A file whose checksums are right but whose manifest was edited."""
    parts = members(good)
    manifest = json.loads(parts.pop("manifest.json"))
    parts.update({name.replace("_", "."): content for name, content in arrays.items()})
    manifest["checksums"] = {name: zlib.crc32(content) for name, content in parts.items()}
    change(manifest)
    return packed({**parts, "manifest.json": json.dumps(manifest).encode()})


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array), (1, 0))
    return out.getvalue()


# -- damage -----------------------------------------------------------------------------------------------------------


def test_cut_off_anywhere(good: bytes, refuses: Any, tmp_path: Path) -> None:
    for length in {*range(0, len(good), 97), 0, 1, 4, 21, 22, 23, len(good) - 1, len(good) - 22}:
        (tmp_path / "c").write_bytes(good[:length])
        refuses(tmp_path / "c")


@settings(max_examples=150)
@given(st.data())
def test_a_changed_byte(good: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """It is found, or it was in a part of the zip format that means nothing (dates, flags, padding)."""
    at = data.draw(st.integers(0, len(good) - 1))
    path = tmp_path_factory.getbasetemp() / "changed"
    content = bytearray(good)
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    kv = trained(kvstore.create("local"))
    before = state(kv)
    with np.errstate(all="ignore"), suppress(CheckpointError):
        kv.load(path)
    assert state(kv) == before


@given(st.binary(max_size=300))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, refuses: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    refuses(path)


def test_members_swapped_or_missing(good: bytes, refuses: Any, tmp_path: Path) -> None:
    parts = members(good)
    swapped = {**parts, "0.npy": parts["1.npy"], "1.npy": parts["0.npy"]}
    variants = [swapped, {**parts, "more.npy": parts["0.npy"]}]
    variants += [{n: c for n, c in parts.items() if n != missing} for missing in parts]
    for variant in variants:
        (tmp_path / "c").write_bytes(packed(variant))
        refuses(tmp_path / "c")


def test_other_files(refuses: Any, tmp_path: Path) -> None:
    path = tmp_path / "c"
    assert "cannot be read: No such file" in refuses(path)
    path.mkdir()
    assert "no regular file" in refuses(path)
    path.rmdir()
    os.mkfifo(path)
    assert "no regular file" in refuses(path)
    path.unlink()
    np.savez(path.with_suffix(".npz"), w=DATA)
    assert "manifest" in refuses(path.with_suffix(".npz"))
    path.write_bytes(packed({"manifest.json": b'{"format": "something else"}'}))
    assert refuses(path) == "it is no checkpoint"
    path.write_bytes(packed({"manifest.json": b"[" * 100_000}))
    refuses(path)


def test_a_version_of_the_format_that_is_not_known(good: bytes, refuses: Any, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(forged(good, lambda m: m.update(format_version=2)))
    assert refuses(tmp_path / "c") == "it is of version 2, this program reads 1"


# -- forgeries: all checksums are right -------------------------------------------------------------------------------


def key(manifest: dict[str, Any], name: str = "w") -> Any:
    return next(entry for entry in manifest["keys"] if entry["key"] == name)


@pytest.mark.parametrize("change", [
    lambda m: m.pop("keys"),
    lambda m: m.update(keys={"w": 1}),
    lambda m: m["keys"].append(key(m)),
    lambda m: m["keys"].pop(),
    lambda m: m["settings"].pop("type"),
    lambda m: m["settings"].update(rule=5),
    lambda m: m["settings"].update(more=5),
    lambda m: key(m).update(key=None),
    lambda m: key(m).update(key=[1]),
    lambda m: key(m).update(key=2**63),
    lambda m: key(m).update(key=True),
    lambda m: key(m).update(shape=[-40, -25]),
    lambda m: key(m).update(shape=[2**40, 2**40]),
    lambda m: key(m).update(shape=[40.0, 25]),
    lambda m: key(m).update(shape=[1000]),
    lambda m: key(m).update(dtype="object"),
    lambda m: key(m).update(sparse=True),
    lambda m: key(m).update(count=-1),
    lambda m: key(m).update(count=2**64),
    lambda m: key(m).update(version="1"),
    lambda m: key(m)["arrays"].update({"value": key(m, "table")["arrays"]["value"]}),
    lambda m: key(m)["arrays"].pop("slot/mean"),
    lambda m: key(m)["arrays"].pop("value"),
    lambda m: key(m)["arrays"].update({"more": "0.npy"}),
    lambda m: key(m)["arrays"].update({"slot/more": key(m, "table")["arrays"]["ids"]}),
    lambda m: key(m)["arrays"].update({"value": "99.npy"}),
    lambda m: key(m)["arrays"].update({"value": ["0.npy"]}),
    lambda m: key(m)["arrays"].update({"ids": key(m, "table")["arrays"]["ids"]}),
    lambda m: key(m)["residuals"].update({"x": "0.npy"}),
    lambda m: key(m)["residuals"].update({"0": key(m, "table")["arrays"]["ids"]}),
    lambda m: key(m, "table").update(shape=[5, 4]),
    lambda m: key(m, "table")["arrays"].pop("ids"),
])  # fmt: skip
def test_an_edited_manifest(change: Any, good: bytes, refuses: Any, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(forged(good, change))
    refuses(tmp_path / "c")


def header(text: str) -> bytes:
    body = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


@pytest.mark.parametrize("content", [
    header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"),
    header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000000000000, 1000000000000), }"),
    header("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1000000000000), }"),
    header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
    header("{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }") + bytes(4),
    header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + bytes(8),
    header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }") + bytes(4),
    header("__import__('os')"),
    b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    b"",
    npy(np.zeros((41, 25), np.float32)),
    npy(np.zeros((40, 25), np.float64)),
])  # fmt: skip
def test_an_array_that_is_not_what_the_manifest_says(content: bytes, good: bytes, refuses: Any, tmp_path: Path) -> None:
    """Nothing is allocated for what is not there."""
    value = key(json.loads(members(good)["manifest.json"]))["arrays"]["value"]
    (tmp_path / "c").write_bytes(forged(good, lambda m: None, **{value.replace(".", "_"): content}))
    refuses(tmp_path / "c")


@pytest.mark.parametrize("ids", [[7, 3], [3, 3], [3, 20], [-1, 3], [3], [[3, 7]], [3.0, 7.0]])
def test_row_ids_that_no_table_has(ids: Any, good: bytes, refuses: Any, tmp_path: Path) -> None:
    member = key(json.loads(members(good)["manifest.json"]), "table")["arrays"]["ids"]
    (tmp_path / "c").write_bytes(forged(good, lambda m: None, **{member.replace(".", "_"): npy(np.array(ids))}))
    refuses(tmp_path / "c")


def test_compressed_members_are_not_unpacked(good: bytes, refuses: Any, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(packed(members(good), zipfile.ZIP_DEFLATED))
    assert refuses(tmp_path / "c") == "its members are compressed: a checkpoint's are not"


def test_a_new_table_too_large_for_memory(good: bytes, tmp_path: Path) -> None:
    """Nothing but the manifest knows how many rows there are."""
    (tmp_path / "c").write_bytes(forged(good, lambda m: key(m, "table").update(shape=[2**55, 4])))
    for kv_type in ("local", "dist_sync"):
        assert issubclass(run(kv_type, lambda kv: error_of(lambda: kv.load(tmp_path / "c")))[0], (PSError, MemoryError))


# -- every worker of a job hears of it --------------------------------------------------------------------------------


def run(type: str, work: Callable[[Any], Any], workers: int = 1, servers: int = 2) -> list[Any]:
    if type == "local":
        return [work(kvstore.create(type))]
    return kvstore.LocalCluster(workers=workers, servers=servers, type=type, bigarray_bound=200, timeout=20).run(work)


def error_of(call: Callable[[], Any]) -> type[BaseException]:
    try:
        call()
    except (PSError, MemoryError) as error:
        return type(error)
    raise AssertionError("no error")


def test_every_worker_gets_the_error_and_goes_on(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c"
    bad = {
        "cut": good[:-1000],
        "slot": forged(good, lambda m: key(m, "table")["arrays"].pop("slot/mean")),
        "shape": forged(good, lambda m: key(m, "table").update(shape=[21, 4])),
        "rule": forged(good, lambda m: m["settings"].update(rule=["optimizer", ["sgd", {}]])),
        "other": forged(good, lambda m: m["settings"].update(rule=["updater", "nobody"])),
    }

    def work(kv: Any) -> None:
        trained(kv)
        before = state(kv)
        for name, content in bad.items():
            if kv.rank == 0:
                path.write_bytes(content)
            with pytest.raises(ConfigError if name in ("rule", "other") else CheckpointError):
                kv.load(path)
            assert state(kv) == before
        for target in (tmp_path, tmp_path / "not" / "there", "/proc/none", "a\0b", 7, ""):
            for call in (kv.save, kv.load):
                with pytest.raises((CheckpointError, ConfigError)):
                    call(target)
        kv.save(path)
        kv.load(path)
        assert state(kv) == before
        kv.push("w", np.ones_like(DATA))
        assert kv.pull("w").tobytes() != before[0]

    run("dist_sync", work, workers=3)


# -- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(nbytes: int) -> Iterator[None]:
    """As if the disk was full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_file_that_was_there(good: bytes, tmp_path: Path) -> None:
    kv = trained(kvstore.create("local"))
    path = tmp_path / "c"
    path.write_bytes(good)
    for limit in range(0, len(good) - 1, 1000):
        with files_of_at_most(limit), pytest.raises(CheckpointError, match="cannot be written: File too large"):
            kv.save(path)
    assert path.read_bytes() == good and os.listdir(tmp_path) == ["c"]
    kv.save(path)
    kv.load(path)


def test_a_crash_in_the_middle_leaves_the_file_that_was_there(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*arguments: Any) -> None:
        raise KeyboardInterrupt

    kv = trained(kvstore.create("local"))
    path = tmp_path / "c"
    path.write_bytes(good)
    for name in ("add", "finish"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(archive.Writer, name, crash)
            kv.save(path)
    assert path.read_bytes() == good and os.listdir(tmp_path) == ["c"]


def test_devices_and_links(tmp_path: Path) -> None:
    kv = trained(kvstore.create("local"))
    with pytest.raises(CheckpointError, match="no regular file"):
        kv.save("/dev/full")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    (tmp_path / "link").symlink_to(tmp_path / "c")
    kv.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    kv.load(tmp_path / "c")


def test_names_of_files(weird_tmp_path: Path) -> None:
    kv = trained(kvstore.create("local"))
    for name in ("x" * 255, os.fsdecode(b"\xff\xfe")):
        kv.save(weird_tmp_path / name)
        kv.load(str(weird_tmp_path / name))
    with pytest.raises(CheckpointError):
        run("dist_sync", lambda kv: kv.load(os.fsdecode(b"/\xff\xfe")), workers=2)
    shutil.rmtree(weird_tmp_path)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)  # a surrogate alone is no key
NUMBERS = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(TEXTS, unique=True, max_size=5) | st.lists(NUMBERS, unique=True, max_size=5))
def test_names_of_keys(tmp_path_factory: pytest.TempPathFactory, keys: list[Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "named"
    kv, other = kvstore.create("local"), kvstore.create("local")
    for number, name in enumerate(keys):
        kv.init(name, np.full(2, number))
    kv.save(path)
    other.load(path)
    assert [other.pull(name).tolist() for name in keys] == [[n, n] for n in range(len(keys))]


def test_keys_that_do_not_travel(tmp_path: Path) -> None:
    kv = kvstore.create("local")
    kv.init("w", np.ones(2))
    kv.save(tmp_path / "c")
    renamed = forged((tmp_path / "c").read_bytes(), lambda manifest: key(manifest).update(key="\ud800"))
    (tmp_path / "c").write_bytes(renamed)

    def work(kv: Any) -> type[BaseException]:
        found = error_of(lambda: kv.load(tmp_path / "c"))
        kv.init("w", np.ones(2))
        return found

    assert all(issubclass(error, PSError) for error in run("dist_sync", work, workers=2))


def test_int_and_str_keys_are_not_mixed(tmp_path: Path) -> None:
    kv, other = kvstore.create("local"), kvstore.create("local")
    kv.init(1, np.ones(2))
    other.init("w", np.ones(2))
    other.save(tmp_path / "c")
    with pytest.raises(CheckpointError):
        kv.load(tmp_path / "c")


def test_numpy_reads_the_file(good: bytes, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(good)
    with np.load(tmp_path / "c") as file:
        value = file[key(json.loads(file["manifest.json"]))["arrays"]["value"].removesuffix(".npy")]
    kv = trained(kvstore.create("local"))
    assert value.tobytes() == kv.pull("w").tobytes()
