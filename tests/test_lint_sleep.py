from __future__ import annotations

from pathlib import Path

import pytest

from tests import lint_sleep


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.sleep(1)",
        "import time as t\nt.sleep(1)",
        "from time import sleep\nsleep(1)",
        "from time import sleep as nap\nnap(1)",
        "def f():\n    import time; time.sleep(1)",
        "import time\nwait = time.sleep",
        "import time\ntime.sleep(1)  # sleep-ok:",
        'import time\ntime.sleep(len("# sleep-ok: not a comment"))',
    ],
)
def test_a_sleep_is_found_under_any_name(source: str) -> None:
    assert list(lint_sleep.sleeps(source)) == [(2, False)]


@pytest.mark.parametrize("source", ["import time\ntime.monotonic()", "sleep(1)", "# time.sleep(1)", "clock.sleep(1)"])
def test_other_things_are_not_found(source: str) -> None:
    assert list(lint_sleep.sleeps(source)) == []


def test_a_reason_excuses_ten_times(tmp_path: Path) -> None:
    line = "time.sleep(1)  # sleep-ok: the peer polls once a second\n"
    (tmp_path / "ten.py").write_text("import time\n" + 10 * line)
    assert lint_sleep.problems(tmp_path) == []
    (tmp_path / "one.py").write_text("import time\n" + line)
    assert lint_sleep.problems(tmp_path)[0].startswith("11 excused sleeps, at most 10")


def test_the_message_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import time\n\ntime.sleep(1)\n")
    assert lint_sleep.problems(tmp_path) == [f"{tmp_path}/a.py:3: time.sleep without '# sleep-ok: reason'"]
