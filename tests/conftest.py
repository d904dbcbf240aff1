"""Fixtures for all tests. Helpers are imported as ``from tests.harness import ...``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

from tests.cases.seed import SEED
from tests.harness import FakeClock, leaks

leaks.watch()

# On a busy machine a slow example is no failure; pytest's time limit stays.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")


def pytest_report_header() -> str:
    return f"CASES_SEED={SEED}"


@pytest.fixture(autouse=True)
def _test_leaves_nothing() -> Iterator[None]:
    yield from leaks.check("this test")


@pytest.fixture(autouse=True, scope="module")
def _module_leaves_nothing() -> Iterator[None]:
    yield from leaks.check("the fixtures of this module")


@pytest.fixture(autouse=True, scope="session")
def _session_leaves_nothing() -> Iterator[None]:
    yield from leaks.check("the fixtures of this session")


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock that stands still until ``fake_clock.advance(seconds)``."""
    return FakeClock()


@pytest.fixture
def weird_tmp_path(tmp_path: Path) -> Path:
    """A directory whose name breaks whatever passes it through a shell or splits it."""
    path = tmp_path / "a b 'c' \"d\" $(echo foo)\nüñ;&*"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    """The torch package; skips the test where it is not installed, which is a failure if CI=true."""
    return installed("torch")


@pytest.fixture(scope="session")
def jax() -> ModuleType:
    """The jax package, on the CPU and with 64-bit numbers; skips as ``torch`` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")  # read by the import; without it jax looks for other devices
        module = installed("jax")
    module.config.update("jax_enable_x64", True)
    return module


def installed(name: str, extras: str = "test,torch-test") -> ModuleType:
    """A module; skips the test where it is not installed, which is a failure if CI=true."""
    try:
        return importlib.import_module(name)
    except ImportError:
        reason = f"needs {name}: make test EXTRAS={extras}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
