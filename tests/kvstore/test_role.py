"""Which part a process plays is read the same way everywhere."""

from __future__ import annotations

import pytest

import kvstore


def test_the_role_is_read_without_regard_to_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMLC_ROLE", " Server ")
    with pytest.raises(kvstore.ConfigError, match=r"this process is a server: begin the script with kvstore\.serve"):
        kvstore.create("local")


@pytest.mark.parametrize("start", [kvstore.serve, kvstore.create])
def test_an_unknown_role_is_an_error_that_lists_the_roles(start: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMLC_ROLE", "sever")
    assert callable(start)
    with pytest.raises(kvstore.ConfigError, match=r"DMLC_ROLE='sever'.*scheduler, server, worker"):
        start()
