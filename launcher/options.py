"""The command line of the launcher. Strict: an unknown option is an error, never part of the command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import values

LAUNCHERS = ("local", "ssh", "mpi", "slurm", "sge", "ray", "kubernetes")
_ONLY_OF = {
    "sync_dst_dir": "ssh",
    "ssh_option": "ssh",
    "sbatch": "slurm",
    **dict.fromkeys(("image", "name", "namespace", "volume"), "kubernetes"),
}

_USAGE = "%(prog)s -n N [-s N] [options] [--] COMMAND [ARG ...]"
_DESCRIPTION = """\
Start a scheduler, servers and workers, each running COMMAND with its role and
rank in the environment; stop them all when one fails. The command begins at
the first word that is not an option, or after --, and is passed on unchanged.
"""
_EXAMPLES = """\
examples:
  {prog} -n 4 -s 2 python train.py --kv-store dist_sync
  {prog} -n 4 --log-dir runs --env-worker SEED=1 python train.py
  {prog} -n 8 -s 2 -H node1:slots=4,node2:slots=4 python train.py
"""


@dataclass(frozen=True)
class Options:
    """The launcher's options, validated. Times are seconds."""

    num_workers: int
    num_servers: int
    max_servers: int
    command: tuple[str, ...]
    launcher: str = "local"
    hostfile: str | None = None
    servers_on: str | None = None
    interface: str | None = None
    chdir: str | None = None
    sync_dst_dir: str | None = None
    python: str | None = None
    ssh_option: tuple[str, ...] = ()
    sbatch: bool = False
    check: bool = False
    image: str | None = None
    name: str | None = None
    namespace: str | None = None
    volume: tuple[tuple[str, str], ...] = ()  # claims, and where they are seen
    server_command: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    env_server: tuple[str, ...] = ()
    env_worker: tuple[str, ...] = ()
    log_dir: str | None = None
    start_timeout: float | None = None
    grace: float = 10.0
    max_restarts: int = 0
    replicas: int = 0
    on_worker_lost: str | None = None
    elastic: tuple[int, int] | None = None  # workers that the job begins with, and how many there may be at a time
    p3: bool = False
    checkpoint_dir: str | None = None
    checkpoint_every: float | None = None
    checkpoint_keep: int | None = None
    resume: bool = False
    color: str = "auto"
    prefix: bool = True
    timestamps: bool = False
    dry_run: bool = False
    format: str = "text"


def parse(argv: Sequence[str], prog: str) -> Options:
    """Parse and validate; on ``--help`` and on mistakes raises SystemExit (0 and 2) as argparse does."""
    parser = _parser(prog)
    args = parser.parse_args(argv)
    _check_hosts(args, parser)
    if not args.checkpoint_dir and (args.checkpoint_every or args.checkpoint_keep or args.resume):
        parser.error("--checkpoint-every, --checkpoint-keep and --resume need --checkpoint-dir")
    if args.num_workers is None:
        if args.elastic is None:
            parser.error("the following arguments are required: -n/--num-workers")
        args.num_workers = args.elastic[0]
    if args.elastic and not args.elastic[0] <= args.num_workers <= args.elastic[1]:
        parser.error(f"-n {args.num_workers} is not in the range of --elastic {args.elastic[0]}:{args.elastic[1]}")
    num_servers = args.num_workers if args.num_servers is None else args.num_servers
    if args.replicas >= num_servers:
        parser.error("--replicas 1 needs another server that has the replica: give -s 2 or more")
    max_servers = num_servers if args.max_servers is None else args.max_servers
    if max_servers < num_servers:
        parser.error(f"--max-servers {max_servers}: the job starts with {num_servers} servers (-s)")
    if args.max_servers is not None and (args.replicas or not args.max_restarts):
        parser.error("--max-servers needs --max-restarts, and no --replicas: servers move as they are started again")
    if args.format and not args.dry_run:
        parser.error("--format needs --dry-run")
    if args.command[:1] == ["--"]:
        del args.command[0]
    if not args.command and not args.check:
        parser.error("the command to run is missing")
    args.num_servers, args.max_servers, args.format = num_servers, max_servers, args.format or "text"
    fixed: dict[str, Any] = {name: tuple(value) for name, value in vars(args).items() if isinstance(value, list)}
    return Options(**(vars(args) | fixed))


def _check_hosts(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if args.launcher is None:
        args.launcher = "ssh" if args.hostfile is not None else "local"
    if args.launcher not in LAUNCHERS:
        parser.error(f"--launcher {args.launcher}: there are {', '.join(LAUNCHERS)}")
    if args.launcher == "local" and args.hostfile is not None:
        parser.error("--launcher local runs on this host only: leave it out, or give --launcher ssh for -H")
    for option, launcher in _ONLY_OF.items():
        if getattr(args, option) and args.launcher != launcher:
            parser.error(f"--{option.replace('_', '-')} needs --launcher {launcher}")
    if args.check and args.num_workers is None:
        args.num_workers = 1


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EXAMPLES.format(prog=prog),
        allow_abbrev=False,
        add_help=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=27, width=79),
    )
    _add_processes(parser.add_argument_group("processes"))
    _add_hosts(parser.add_argument_group("hosts"))
    _add_kubernetes(parser.add_argument_group("kubernetes"))
    _add_environment(parser.add_argument_group("environment"))
    _add_checkpoints(parser.add_argument_group("checkpoints"))
    _add_output(parser.add_argument_group("output"))
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _add_processes(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-n", "--num-workers", type=values.count, metavar="N", help="number of workers")
    group.add_argument(
        "-s", "--num-servers", type=values.count, metavar="N", help="number of servers (default: as many as workers)"
    )
    group.add_argument(
        "--max-servers",
        type=values.shards,
        metavar="N",
        help="shards of the model, which pslite scale spreads over up to N servers (default: as many as servers; needs "
        "--max-restarts)",
    )
    group.add_argument(
        "--server-command",
        type=values.words_of,
        metavar="CMD",
        help="what servers and the scheduler run instead of COMMAND: one argument, split like a shell does",
    )
    group.add_argument(
        "--start-timeout",
        type=values.seconds_of,
        metavar="SECONDS",
        help="how long to wait for all processes to join; 0 for ever (sets PSLITE_START_TIMEOUT)",
    )
    group.add_argument(
        "--grace",
        type=values.seconds_of,
        default=10.0,
        metavar="SECONDS",
        help="time between SIGTERM and SIGKILL, and for servers to end after the last worker (default: 10)",
    )
    group.add_argument(
        "--max-restarts",
        type=values.restarts,
        default=0,
        metavar="N",
        help="how often a process that a signal ended is started again (default: 0: the job ends)",
    )
    group.add_argument(
        "--replicas",
        type=int,
        choices=(0, 1),
        default=0,
        help="how many other servers have what a server has; with 1 one of them goes on for it when a signal ends it, "
        "and servers are not started again (default: 0; sets PSLITE_REPLICAS)",
    )
    group.add_argument(
        "--on-worker-lost",
        choices=("raise", "wait", "shrink"),
        help="when a worker dies: end the job, wait for it to be started again, or go on without it (default: wait "
        "with --max-restarts, else raise; sets PSLITE_ON_WORKER_LOST)",
    )
    group.add_argument(
        "--elastic",
        type=values.bounds,
        metavar="MIN:MAX",
        help="workers may join the running job: it begins with MIN of the N (default: MIN) that are started, and "
        "`pslite scale` starts or ends some (sets PSLITE_MAX_WORKERS)",
    )
    group.add_argument("--dry-run", action="store_true", help="print what would be started, and start nothing")
    group.add_argument("--format", choices=("text", "json"), help="of --dry-run (default: text)")
    group.add_argument("-h", "--help", action="help", help="show this text and exit")


def _add_hosts(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--launcher",
        metavar="NAME",
        help=f"what starts the processes: {', '.join(LAUNCHERS)} (default: ssh with -H, else local)",
    )
    group.add_argument(
        "-H",
        "--hostfile",
        metavar="HOSTS",
        help="a file with a host per line, [USER@]NAME [slots=N] [port=N] [address=A], or node1:slots=4,node2",
    )
    group.add_argument(
        "--servers-on", metavar="NAMES", help="the hosts for servers, with commas (default: all, in turn)"
    )
    group.add_argument(
        "--interface", metavar="NAME", help="of each host, for scheduler and servers (sets DMLC_INTERFACE)"
    )
    group.add_argument(
        "--chdir", metavar="DIR", help="where processes run, on every host (default: this directory)"
    )
    group.add_argument(
        "--sync-dst-dir", metavar="DIR", help="copy this directory there on every host first, by rsync, and run there"
    )
    group.add_argument(
        "--python", metavar="PATH", help="the interpreter on other hosts (default: that of the launcher)"
    )
    group.add_argument(
        "--ssh-option",
        action="append",
        default=[],
        metavar="NAME=V",
        help="as in ssh_config, in place of what stands there (repeatable)",
    )
    group.add_argument(
        "--sbatch", action="store_true", help="print the batch script of --launcher slurm, and start nothing"
    )
    group.add_argument("--check", action="store_true", help="look at every host, and start nothing")


def _add_kubernetes(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--image", help="what containers run: with Python, pslite and COMMAND in it")
    group.add_argument("--name", help="of the job: its objects' names begin with it (default: pslite- and six digits)")
    group.add_argument("--namespace", metavar="NS", help="where they are made (default: kubectl's)")
    group.add_argument(
        "--volume",
        type=values.volume,
        action="append",
        default=[],
        metavar="CLAIM:PATH",
        help="a PersistentVolumeClaim that every process sees at PATH (repeatable)",
    )


def _add_environment(group: argparse._ArgumentGroup) -> None:
    for option, who in (("--env", "every process"), ("--env-server", "servers"), ("--env-worker", "workers")):
        group.add_argument(
            option,
            action="append",
            default=[],
            metavar="NAME[=V]",
            help=f"set a variable for {who}; also NAME:V (repeatable)",
        )
    group.add_argument(
        "--p3", action="store_true", help="send arrays in slices by priority (sets DMLC_PS_VAN_TYPE=p3)"
    )


def _add_checkpoints(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--checkpoint-dir", metavar="DIR", help="the servers write checkpoints there (sets PSLITE_CHECKPOINT_DIR)"
    )
    group.add_argument(
        "--checkpoint-every",
        type=values.seconds_of,
        metavar="SECONDS",
        help="how often (default: when a worker asks for one)",
    )
    group.add_argument("--checkpoint-keep", type=values.count, metavar="N", help="how many stay there (default: 3)")
    group.add_argument("--resume", action="store_true", help="go on from the newest one, if there is any")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--log-dir", metavar="DIR", help="also write each process's output below DIR")
    group.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colour the prefixes (default: auto, on a terminal; NO_COLOR and FORCE_COLOR count)",
    )
    group.add_argument("--no-prefix", dest="prefix", action="store_false", help="do not begin lines with [worker 0]")
    group.add_argument("--timestamps", action="store_true", help="begin lines with the time of day")
