"""MXNet's rules of ``create``, ``is_capable`` and plugins, row by row, and where this package differs on purpose."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.local import LocalStore
from kvstore.plugins import KVStoreBase
from pslite.errors import ConfigError, DTypeError, NotInClusterError, ShapeError

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
BASE_METHODS = {
    "broadcast": lambda kv: kv.broadcast("w", np.ones(2), np.zeros(2)),
    "pushpull": lambda kv: kv.pushpull("w", np.ones(2)),
    "set_optimizer": lambda kv: kv.set_optimizer(kvstore.optimizer.create("sgd")),
    "is_capable": lambda kv: kv.is_capable("optimizer"),
    "save_optimizer_states": lambda kv: kv.save_optimizer_states("states", dump_optimizer=True),
    "load_optimizer_states": lambda kv: kv.load_optimizer_states("states"),
    "type": lambda kv: kv.type,
    "rank": lambda kv: kv.rank,
    "num_workers": lambda kv: kv.num_workers,
}


@pytest.fixture(autouse=True)
def registry() -> Iterator[dict[str, Any]]:
    """The registry of plugins, which is afterwards as before."""
    before = dict(KVStoreBase.kv_registry)
    yield KVStoreBase.kv_registry
    KVStoreBase.kv_registry.clear()
    KVStoreBase.kv_registry.update(before)


def plugin(name: str) -> Any:
    """A class of this name, not registered yet."""
    return type(name, (KVStoreBase,), {"__module__": "tests.plugin"})


# -- create -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, 3, 2.0, b"local", ["local"], LocalStore])
def test_a_name_is_a_str(name: Any) -> None:
    with pytest.raises(ConfigError, match="types are local, device, dist"):
        kvstore.create(name)


@pytest.mark.parametrize(
    "name", ["", "foo", "local_allreduce_cpu", "dist_foo", "sync", "dist_sync_", " local", "async_dist"]
)
def test_other_names_are_no_local_or_dist_stores(name: str) -> None:
    with pytest.raises(ConfigError, match=r"types are local, device, dist.*teststore"):
        kvstore.create(name)


@pytest.mark.parametrize("name", ["nccl", "NCCL", "horovod", "byteps"])
def test_types_that_are_not_here_say_what_is(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"type='{name}'.*no (?i:{name}); use '(device|dist_sync)'.*types are local"):
        kvstore.create(name)


@pytest.mark.parametrize("name", ["dist", "dist_sync", "Dist_Async", "dist_sync_device"])
def test_dist_types_need_a_cluster(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DMLC_ROLE", raising=False)
    with pytest.raises(NotInClusterError, match=f"'{name.lower()}'"):
        kvstore.create(name)


@pytest.mark.parametrize("name", ["local", "LOCAL", "Device"])
def test_the_type_is_the_name_in_lower_case(name: str) -> None:
    assert kvstore.create(name).type == name.lower()
    assert kvstore.create().type == "local"


# -- is_capable -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["local", "device", "teststore"])
def test_is_capable(type: str) -> None:
    kv = kvstore.create(type)
    for word in ("optimizer", "Optimizer", "OPTIMIZER", KVStoreBase.OPTIMIZER):
        assert kv.is_capable(word) is (type != "teststore")
    for other in ("", "sparse", None, 3):
        with pytest.raises(ValueError, match="'optimizer'"):
            kv.is_capable(other)  # type: ignore[arg-type]


# -- the registry -----------------------------------------------------------------------------------------------------


def test_register_returns_the_class_and_create_makes_one_without_arguments(registry: dict[str, Any]) -> None:
    made: list[tuple[Any, ...]] = []

    class MyStore(KVStoreBase):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            made.append((args, kwargs))

    assert KVStoreBase.register(MyStore) is MyStore and registry["mystore"] is MyStore
    for name in ("MyStore", "mystore", "MYSTORE"):
        assert type(kvstore.create(name)) is MyStore
    assert made == [((), {})] * 3


def test_a_registered_name_is_looked_up_before_native_ones() -> None:
    Local, Dist = KVStoreBase.register(plugin("Local")), KVStoreBase.register(plugin("Dist_Sync"))
    assert type(kvstore.create("local")) is Local and type(kvstore.create()) is Local
    assert type(kvstore.create("dist_sync")) is Dist  # no cluster is needed
    assert kvstore.create("device").type == "device"
    KVStoreBase.register(plugin("Horovod"))
    assert type(kvstore.create("horovod")).__name__ == "Horovod"


def test_registering_a_name_again_warns_and_the_last_one_counts() -> None:
    first, second = plugin("Twice"), plugin("TWICE")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KVStoreBase.register(first)
    text = "WARNING: New kvstore tests.plugin.TWICE is overriding existing kvstore tests.plugin.Twice"
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$") as caught:
        KVStoreBase.register(second)
    assert caught[0].filename == __file__
    assert type(kvstore.create("twice")) is second


def test_only_classes_can_be_registered() -> None:
    with pytest.raises(ConfigError, match="register a class"):
        KVStoreBase.register(plugin("Mine")())


def test_plugins_take_no_options() -> None:
    KVStoreBase.register(plugin("Mine"))
    with pytest.raises(ConfigError, match=r"timeout='given'.*'mine' takes no options"):
        kvstore.create("Mine", timeout=3)


def test_unknown_names_are_told_of_the_plugins() -> None:
    KVStoreBase.register(plugin("Mine"))
    with pytest.raises(ConfigError, match=r"types are local.*, mine$"):
        kvstore.create("mime")


@pytest.mark.parametrize("role", ["server", "scheduler"])
def test_a_server_has_no_plugin(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMLC_ROLE", role)
    with pytest.raises(ConfigError, match=rf"this process is a {role}.*kvstore\.serve\(\)"):
        kvstore.create("teststore")


def test_a_worker_of_a_job_may_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMLC_ROLE", "worker")
    assert kvstore.create("teststore").type == "teststore"


@pytest.mark.parametrize("method", BASE_METHODS)
def test_methods_of_the_base_are_not_implemented(method: str) -> None:
    with pytest.raises(NotImplementedError):
        BASE_METHODS[method](KVStoreBase())
    with pytest.raises(NotImplementedError):
        BASE_METHODS[method](plugin("Mine")())


def test_the_base_has_these_methods_only() -> None:
    public = {name for name in vars(KVStoreBase) if not name.startswith("_")}
    assert public == {*BASE_METHODS, "OPTIMIZER", "kv_registry", "register"}
    assert KVStoreBase.OPTIMIZER == "optimizer"


# -- teststore --------------------------------------------------------------------------------------------------------


@pytest.fixture
def store() -> Any:
    return kvstore.create("TestStore")


def test_what_a_teststore_is(store: Any) -> None:
    assert isinstance(store, KVStoreBase)
    assert (store.type, store.rank, store.num_workers) == ("teststore", 0, 1)
    for method in ("set_optimizer", "save_optimizer_states", "load_optimizer_states"):
        with pytest.raises(NotImplementedError):
            BASE_METHODS[method](store)


def test_teststore_broadcasts_into_each_out_and_as_often_as_called(store: Any) -> None:
    out, outs = np.zeros(2), [np.zeros(2), np.zeros(2, np.int32)]
    for number in (1, 2):
        store.broadcast("w", np.full(2, float(number)), out)
        store.broadcast("w", np.full(2, float(number)), out=outs, priority=3)
        assert [o.tolist() for o in (out, *outs)] == [[number, number]] * 3


def test_teststore_sums_devices_in_place_or_into_outs(store: Any) -> None:
    values = [np.full(2, number, np.float32) for number in (1, 2, 4)]
    out, outs = np.zeros(2), [np.zeros(2), np.zeros(2)]
    store.pushpull("w", values, out=out)
    store.pushpull("w", values, out=outs)
    assert [o.tolist() for o in (out, *outs)] == [[7, 7]] * 3
    assert [v[0] for v in values] == [1, 2, 4]
    store.pushpull("w", values)
    assert [v.tolist() for v in values] == [[7, 7]] * 3


def test_teststore_takes_one_array(store: Any) -> None:
    value, out, outs = np.full(2, 3.0), np.zeros(2), [np.zeros(2), np.zeros(2)]
    value.flags.writeable = False
    assert store.pushpull("w", value) is None and value.tolist() == [3, 3]  # nothing to do
    store.pushpull("w", value, out=out)
    store.pushpull("w", value, out=outs)
    assert [o.tolist() for o in (out, *outs)] == [[3, 3]] * 3


def test_teststore_takes_lists_of_keys(store: Any) -> None:
    values = [[np.ones(2), np.ones(2)], [np.full(3, 2.0), np.full(3, 2.0)]]
    outs = [np.zeros(2), np.zeros(3)]
    store.pushpull([3, 4], values, out=outs)
    assert [o.tolist() for o in outs] == [[2, 2], [4, 4, 4]]
    store.broadcast(["a", "b"], [np.ones(2), np.ones(3)], [outs[0], [outs[1], outs[1]]])
    assert [o.tolist() for o in outs] == [[1, 1], [1, 1, 1]]


def test_teststore_takes_tensors(store: Any, torch: Any) -> None:
    tensors = [torch.ones(2, dtype=torch.bfloat16), torch.full((2,), 2.0, dtype=torch.bfloat16)]
    store.pushpull("w", tensors)
    assert [t.tolist() for t in tensors] == [[3, 3]] * 2
    store.broadcast("w", torch.zeros(2), tensors)
    assert [t.tolist() for t in tensors] == [[0, 0]] * 2


def test_mistakes_with_a_teststore_change_nothing(store: Any) -> None:
    out = np.zeros(2)
    with pytest.raises(ShapeError, match=r"'w'.*\(3,\).*\(2,\)"):
        store.pushpull("w", [np.ones(2), np.ones(3)], out=out)
    with pytest.raises(DTypeError, match=r"'w'.*int32.*float64"):
        store.pushpull("w", [np.ones(2), np.ones(2, np.int32)], out=out)
    with pytest.raises(ShapeError, match="'w'"):
        store.broadcast("w", np.ones(2), [out, np.zeros(3)])
    with pytest.raises(ConfigError, match=r"2 arrays.*'w'"):
        store.broadcast("w", [np.ones(2), np.ones(2)], out)
    assert out.tolist() == [0, 0]


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_example_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    [code, shown] = re.findall(r"^```(?:python|text)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out == shown
