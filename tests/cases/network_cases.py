"""Cases 12 to 18: what networks do, between namespaces."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from random import Random

from kvstore.chaos.findings import Findings
from tests.harness import wait_until
from tests.network.emulator import Faults
from tests.network.hosts import NEEDS, Host, Network
from tests.network.jobs import LanesJob, outage
from tests.network.tended import TendedJob
from tests.system.jobs import LONGEST

from .case import Trial, case

SIZES = (1,) * 6 + (2000,) * 2  # of two workers: the large ones are 96 KB, one for each server
TYPES = ("dist_sync", "dist_async")
SHORT = 1.0  # seconds of a cut after which nobody may be taken for dead


def judged(found: Findings, detection: float | None = None, recovery: float | None = None) -> Trial:
    """The trial of a job that came to its end."""
    return Trial(found.lost, found.doubled, wrong=found.problems, detection=detection, recovery=recovery)


def cut(host: Host, others: list[Host], seconds: float) -> float:
    """Cut a host off from others for so long; returns when the cut was over."""
    begin = time.monotonic()
    host.separate_from(*others)
    outage(max(0.0, begin + seconds - time.monotonic()))
    host.heal()
    return time.monotonic()


def rate(job: LanesJob, seconds: float) -> float:
    """Steps of the slowest worker in a second."""
    begin, before = time.monotonic(), min(job.steps())
    outage(seconds)
    return (min(job.steps()) - before) / (time.monotonic() - begin)


@case(12, "resets under load", soak=30, needs=NEEDS)
def resets(seed: int, where: Path) -> Trial:
    """Live connections of some hosts are ended again and again."""
    random = Random(seed)
    with Network() as network:
        hosts = one, two, three = network.hosts(3)
        for host in hosts:
            host.limit("100mbit")
        with LanesJob(where, one, [one, two], [two, three]) as job:
            job.begin(random.choice(TYPES), SIZES)
            calm = rate(job, 1.0)
            begin, before, ended = time.monotonic(), min(job.steps()), 0
            for _ in range(12):
                ended += sum(host.reset() for host in random.sample(hosts, random.randrange(1, 4)))
                outage(0.2)
            reset = (min(job.steps()) - before) / (time.monotonic() - begin)
            last = time.monotonic()
            job.go_on(2)
            trial = judged(job.end(), recovery=time.monotonic() - last)
    if ended < 12:
        trial.wrong.append(f"only {ended} connections were reset")
    if reset < calm / 5:
        trial.wrong.append(f"{reset:.1f} steps/s under resets, {calm:.1f} without")
    return trial


def lossy(seed: int, where: Path, faults: Faults) -> Trial:
    """A network with these faults; whoever is taken for dead comes again."""
    random = Random(seed)
    with Network() as network:
        one, two, three = network.hosts(3)
        with (
            network.emulated(faults, one, two, three) as bad,
            TendedJob(where, one, [one, two], [two, three]) as job,
        ):
            addresses = dict(zip((one, two, three), bad.addresses, strict=True))
            job.root = addresses[one]
            job.begin(random.choice(TYPES), SIZES, addresses)
            job.go_on(60)
            deaths = job.restarts
            trial = judged(job.end())
    if deaths and faults.loss <= 0.01:
        trial.wrong.append(f"{deaths} processes were taken for dead")
    if sum(bad.counts[harm] for harm in ("lost", "doubled", "reordered")) < 3:
        trial.wrong.append(f"the network did no harm: {bad.counts}")
    return trial


@case(13, "loss, doubling, reordering and delay", soak=30, needs=NEEDS)
def bad_network(seed: int, where: Path) -> Trial:
    """20 ms each way, one packet in a hundred lost, doubled, or early: nobody is taken for dead."""
    return lossy(seed, where, Faults(delay=0.02, loss=0.01, double=0.01, reorder=0.01, seed=seed))


@case(13, "every tenth packet lost", quick=0, soak=10, needs=NEEDS, limit=120)
def worse_network(seed: int, where: Path) -> Trial:
    return lossy(seed, where, Faults(delay=0.005, loss=0.1, double=0.05, reorder=0.05, seed=seed))


@case(14, "partition of 1 s", soak=10, needs=NEEDS)
def short_partition(seed: int, where: Path) -> list[Trial]:
    """A worker, a server, or the scheduler is cut off from all others for a second, several times in one job."""
    random = Random(seed)
    trials = []
    with Network() as network:
        hosts = one, two, three = network.hosts(3)
        with TendedJob(where, one, [one, two], [two, three]) as job:
            job.begin(random.choice(TYPES), SIZES)
            for _ in range(3):
                victim = random.choice(hosts)
                before = job.restarts
                begin = time.monotonic()
                healed = cut(victim, [host for host in hosts if host is not victim], SHORT - 0.03)
                job.go_on(2)
                trials.append(Trial(recovery=time.monotonic() - healed))
                if job.restarts != before and healed - begin <= SHORT:
                    trials[-1].wrong.append(f"taken for dead after a cut of {healed - begin:.2f} s")
            trials.append(judged(job.end()))
    return trials


def long_partition(seed: int, where: Path, seconds: float) -> Trial:
    """A worker or a server is cut off until it is taken for dead, and comes again when the network is whole."""
    random = Random(seed)
    with Network() as network:
        hosts = network.hosts(4)
        with TendedJob(where, hosts[0], hosts[:2], hosts[2:], kills=False) as job:
            job.begin(random.choice(TYPES), SIZES)
            victim = random.choice(hosts[1:])
            healed = cut(victim, [host for host in hosts if host is not victim], seconds)
            job.go_on(2)
            recovery = time.monotonic() - healed
            restarts = job.restarts
            trial = judged(job.end(), recovery=recovery)
    if restarts != 1:
        trial.wrong.append(f"{restarts} processes came again")
    return trial


@case(14, "partition of 5 s", soak=10, needs=NEEDS)
def partition(seed: int, where: Path) -> Trial:
    return long_partition(seed, where, 5.0)


@case(14, "scheduler cut off for 5 s", soak=10, needs=NEEDS)
def scheduler_cut_off(seed: int, where: Path) -> Trial:
    """The others go on without it; then it has taken them all for dead, and all come again."""
    with Network() as network:
        hosts = network.hosts(4)
        with TendedJob(where, hosts[0], hosts[1:3], hosts[2:], kills=False) as job:
            job.begin(Random(seed).choice(TYPES), SIZES)
            hosts[0].separate_from(*hosts[1:])
            begin = time.monotonic()
            while time.monotonic() - begin < 5.0:
                job.go_on(1)
            hosts[0].heal()
            healed = time.monotonic()
            wait_until(lambda: job.restarts >= len(hosts), LONGEST, "another process for each")
            job.go_on(2)
            return judged(job.end(), recovery=time.monotonic() - healed)


@case(14, "partition of 30 s", quick=0, soak=5, needs=NEEDS, limit=120)
def longest_partition(seed: int, where: Path) -> Trial:
    return long_partition(seed, where, 30.0)


@case(15, "one-way cut", soak=30, needs=NEEDS)
def one_way(seed: int, where: Path) -> Trial:
    """A host hears the scheduler and is not heard, or the other way round: all end with an error."""
    random = Random(seed)
    with Network() as network:
        one, two, three = network.hosts(3)
        with LanesJob(where, one, [one, two], [two, three]) as job:
            job.begin(random.choice(TYPES), SIZES)
            begin = time.monotonic()
            cut, other = random.choice([(one, three), (three, one)])
            cut.cut_from(other)
            return Trial(detection=job.fail() - begin)


@case(15, "hidden reset", soak=30, needs=NEEDS)
def half_open(seed: int, where: Path) -> Trial:
    """A worker's ends of its connections are gone, and the others are not told."""
    random = Random(seed)
    with Network() as network:
        one, two, three = network.hosts(3)
        with LanesJob(where, one, [one, two], [two, three]) as job:
            job.begin(random.choice(TYPES), SIZES)
            for other in (one, two):
                other.deaf_to_resets_of(three)
            begin, ended = time.monotonic(), three.reset()
            job.go_on(3)
            trial = judged(job.end(), recovery=time.monotonic() - begin)
    if ended < 3:
        trial.wrong.append(f"{ended} connections were reset, not those to the scheduler and two servers")
    return trial


@case(15, "loss of power", soak=30, needs=NEEDS)
def power(seed: int, where: Path) -> Trial:
    """A worker's host is gone, and its connections stay as they are at the others."""
    random = Random(seed)
    with Network() as network:
        one, two, three = network.hosts(3)
        with LanesJob(where, one, [one, two], [two, three]) as job:
            job.begin(random.choice(TYPES), SIZES)
            begin = time.monotonic()
            three.separate_from(one, two)
            lost = job.of("worker")[1]
            lost.signal(signal.SIGKILL)
            trial = Trial(detection=job.fail(but=[lost]) - begin)
            silent = [p for p in job.processes if p is not lost and "worker 1" not in p.stderr]
    trial.wrong += [f"it does not name worker 1: {process}" for process in silent]
    return trial


@case(15, "cut between a worker and a server", soak=30, needs=NEEDS)
def between(seed: int, where: Path) -> Trial:
    """The scheduler hears both of them."""
    with Network() as network:
        one, two, three = network.hosts(3)
        with LanesJob(where, one, [one, two], [one, three]) as job:
            job.begin("dist_sync", SIZES)
            begin = time.monotonic()
            three.separate_from(two)
            trial = Trial(detection=job.fail() - begin)
            words = job.of("worker")[1].stderr
    if "server 1" not in words:
        trial.wrong.append(f"it does not name server 1: {words}")
    return trial


@case(16, "split brain", soak=50, needs=NEEDS)
def split_brain(seed: int, where: Path) -> Trial:
    """A server is cut from the scheduler and a worker, but not from the other worker; its successor is elsewhere.

    What the old one has acknowledged to the worker that it hears must be in what the successor serves.
    """
    random = Random(seed)
    with Network() as network:
        one, two, three, four = network.hosts(4)
        with TendedJob(where, one, [one, two], [one, three]) as job:
            job.begin(random.choice(TYPES), SIZES)
            seat = job.seat("server", 1)
            seat.host = four
            outage(random.uniform(0.0, 0.3))
            begin = time.monotonic()
            two.separate_from(one)
            wait_until(lambda: seat.restarts == 1, LONGEST, "the server's successor")
            detection = time.monotonic() - begin
            job.go_on(3)
            recovery = time.monotonic() - begin
            two.heal()
            return judged(job.end(), detection, recovery)


@case(16, "split brain, replicated", soak=50, needs=NEEDS)
def split_brain_replicated(seed: int, where: Path) -> Trial:
    """The same with a replica: the server that has it takes over, and may or may not hear the old one."""
    random = Random(seed)
    with Network() as network:
        one, two, three, four = network.hosts(4)
        with LanesJob(where, one, [two, three], [one, four]) as job:
            job.begin(random.choice(TYPES), SIZES, PSLITE_REPLICAS="1", PSLITE_TRANSPORT="tcp")
            old, backup = random.choice([(two, three), (three, two)])
            job.lost = [job.of("server")[[two, three].index(old)]]
            outage(random.uniform(0.0, 0.3))
            begin = time.monotonic()
            old.separate_from(one, *random.choice([(), (backup,)]))
            job.go_on(3)
            recovery = time.monotonic() - begin
            old.heal()
            job.go_on(3)
            return judged(job.end(), recovery=recovery)


def swizzle(seed: int, where: Path, rounds: int, longest: float) -> tuple[Trial, int]:
    """Hosts are clogged one after the other, and unclogged in another order; with how many processes came again."""
    random = Random(seed)
    trial, over = Trial(), 0.0
    with Network() as network:
        hosts = network.hosts(6)
        with TendedJob(where, hosts[0], hosts[1:3], hosts[3:]) as job:
            job.begin(random.choice(TYPES), SIZES)
            for _ in range(rounds):
                some = random.sample(hosts, random.randrange(2, 5))
                moments = sorted(random.uniform(0.0, longest) for _ in range(2 * len(some)))
                begin = time.monotonic()
                acts = [(host, Host.separate_from) for host in some]
                acts += [(host, Host.heal) for host in random.sample(some, len(some))]
                for at, (host, act) in zip(moments, acts, strict=True):
                    outage(max(0.0, begin + at - time.monotonic()))
                    act(host, *([h for h in hosts if h is not host] if act is Host.separate_from else []))
                healed = time.monotonic()
                over = max(over, healed - begin)
                job.go_on(2)
                trial.recovery = max(trial.recovery or 0.0, time.monotonic() - healed)
            deaths = job.restarts if over <= SHORT else 0
            found = judged(job.end(), recovery=trial.recovery)
    return found, deaths


@case(17, "swizzle-clog", soak=20, needs=NEEDS)
def short_swizzle(seed: int, where: Path) -> Trial:
    """So short that nobody may be taken for dead."""
    trial, deaths = swizzle(seed, where, 3, SHORT - 0.1)
    if deaths:
        trial.wrong.append(f"{deaths} processes were taken for dead")
    return trial


@case(17, "long swizzle-clog", quick=0, soak=20, needs=NEEDS, limit=150)
def long_swizzle(seed: int, where: Path) -> Trial:
    """So long that some are taken for dead, and come again."""
    return swizzle(seed, where, 8, 5.0)[0]
