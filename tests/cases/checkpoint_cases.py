"""Case 26: files of a checkpoint are damaged."""

from __future__ import annotations

from pathlib import Path
from random import Random

from kvstore.checkpoint.directory import Directory
from kvstore.checkpoint.job import Id
from tests.kvstore.job_directory import damaged, found, write

from .case import Trial, case

_DAMAGES = 100


@case(26, "a flipped bit, a cut, a zeroed page", quick=_DAMAGES, soak=1000)
def files_damaged(seed: int, where: Path) -> list[Trial]:
    random, first, second = Random(seed), Id(1, 1), Id(1, 2)
    directory = Directory(where / "c")
    write(directory, first)
    write(directory, second)
    files = [Path(directory.path, name) for name in (second.manifest, second.part(0), second.part(1))]
    trials = []
    for _ in range(_DAMAGES):
        file = random.choice(files)
        good = file.read_bytes()
        bad = damaged(random, good)
        file.write_bytes(bad)
        newest = found(directory)
        wrong = [] if newest == (second if bad == good else first) else [f"{file.name}, damaged: {newest} is taken"]
        trials.append(Trial(wrong=wrong))
        file.write_bytes(good)
    directory.close()
    return trials
