"""A server that may take another one's place needs that one's key, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from pslite import Config, Postoffice, security
from pslite.errors import ConfigError


def test_without_it_a_server_does_not_start(tmp_path: Path) -> None:
    security.make(tmp_path, 1, 3)
    own = Config(role="server", num_servers=3, root="tcp://127.0.0.1:1", key_file=str(tmp_path / "server-0.key"))
    (tmp_path / "server-2.key").unlink()
    Postoffice(own).close()
    with pytest.raises(ConfigError, match=r"put server-2\.key beside its own key"):
        Postoffice(Config(**{**vars(own), "replicas": 1}))
