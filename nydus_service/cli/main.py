"""The `nydus-service` command: parse, call the library, print.

Only the module of the requested command is imported, so that `--help` is fast.
"""

import argparse
import contextlib
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from typing import Protocol, cast

from nydus_service.cli.output import finish_output, note, open_closed_streams, print_line
from nydus_service.config.environment import quiet_grpc
from nydus_service.errors import EXIT_INTERRUPTED, NydusServiceError, UnsupportedError, from_os_error
from nydus_service.version import VERSION

COMMANDS = {
    "convert": "make a nydus image of an OCI image, verified",
    "check": "read a nydus image back, compare it with its source",
    "inspect": "show what is in an image, blob or bootstrap",
    "pack": "make one layer into a nydus blob",
    "merge": "make one bootstrap of several nydus blobs",
    "config": "check the daemon's configuration, or make one of acceld's",
    "serve": "run the daemon next to containerd",
    "jobs": "list, show, watch, cancel and retry what the daemon does",
    "sweep": "remove what killed runs left behind",
    "doctor": "report what this machine has and lacks",
    "sample": "make a real image of this machine's own files",
    "demo": "sample, convert, check, and a table of it",
}
LATER = ("reconvert", "unpack")
"""Planned commands; each fails with a message that names it as not available yet."""

_EPILOG = f"""Not there yet: {", ".join(LATER)}.

Exit codes: 0 done or unchanged, 1 internal error, 2 usage, 3 differs or damaged, 4 not found,
5 unsupported, 6 corrupt input, 7 not allowed, 8 unreachable, 9 no space, 20 builder failed,
130 interrupted."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Command = Callable[[argparse.Namespace], Awaitable[int]]


class _CommandModule(Protocol):
    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None: ...

    run: Command


def build_parser(wanted: Sequence[str]) -> argparse.ArgumentParser:
    """Make the parser. Commands among the words of `wanted` get their arguments, others only their name."""
    parser = argparse.ArgumentParser(
        "nydus-service",
        description="Converts OCI container images to nydus images (RAFS v6) and checks them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"nydus-service {VERSION}")
    parser.add_argument("--print-completion", action=_PrintCompletion, metavar="bash|zsh|tcsh")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name in wanted:
            module = cast("_CommandModule", import_module(f"nydus_service.cli.{name}"))
            module.add_arguments(command)
            own_signals = getattr(module, "HANDLES_SIGNALS", False)
            command.set_defaults(command=module.run, handles_signals=own_signals)
    return parser


class _PrintCompletion(argparse.Action):
    """Prints the completion script that `shtab` generates for a shell, and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, metavar: str) -> None:
        super().__init__(option_strings, dest, help="print the completion script of a shell", metavar=metavar)

    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: object, *rest: object) -> None:
        import shtab

        if shell not in shtab.SUPPORTED_SHELLS:
            parser.error(f"no completion for {shell!r}; there is: {', '.join(shtab.SUPPORTED_SHELLS)}")
        print_line(shtab.complete(build_parser(tuple(COMMANDS)), str(shell)))
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    open_closed_streams()
    quiet_grpc()
    words = list(sys.argv[1:] if argv is None else argv)
    verbose = False
    try:
        _refuse_later(words)
        from nydus_service.options.arguments import with_implied_values

        args = build_parser(words).parse_args(with_implied_values(words))
        verbose = args.verbose
        status = _run(args)
    except SystemExit as exc:  # argparse: --help, or a usage error that it has reported
        status = exc.code if isinstance(exc.code, int) else 1
    except NydusServiceError as exc:
        status = _fail(str(exc), exc.exit_code)
    except KeyboardInterrupt:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # another signal would change the exit status
        status = _fail("interrupted", EXIT_INTERRUPTED)
    except Exception as exc:
        status = _fail_unexpectedly(exc, verbose)
    return finish_output(status)


def _refuse_later(words: Sequence[str]) -> None:
    command = next((word for word in words if not word.startswith("-")), "")
    if command in LATER:
        raise UnsupportedError(f"the command {command!r} is not there yet")


def _run(args: argparse.Namespace) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # pending until the command can be cancelled
    import anyio

    from nydus_service.observe.logs import set_up_logs

    set_up_logs(verbose=args.verbose)
    run: Command = args.command if args.handles_signals else _run_until_signal
    return anyio.run(run, args)


async def _run_until_signal(args: argparse.Namespace) -> int:
    """Run the command. SIGINT and SIGTERM cancel it; repeated signals do not interrupt its cleanup.

    Raises:
        KeyboardInterrupt: the command was cancelled, whatever it raised afterwards.
    """
    import anyio

    outcome: int | Exception | None = None
    with anyio.open_signal_receiver(*_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        async with anyio.create_task_group() as tasks:

            async def cancel_on_signal() -> None:
                async for _ in signals:
                    tasks.cancel_scope.cancel()

            tasks.start_soon(cancel_on_signal)
            try:
                outcome = await args.command(args)
            except Exception as exc:  # kept out of the group, which would wrap it
                outcome = None if tasks.cancel_scope.cancel_called else exc
            tasks.cancel_scope.cancel()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # done: a signal must not change the exit status
    if isinstance(outcome, int):
        return outcome
    raise outcome or KeyboardInterrupt


def _fail(message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # stderr is closed: the exit status still reports the failure
        note(f"nydus-service: {message}")
    return status


def _fail_unexpectedly(exc: Exception, verbose: bool) -> int:
    if isinstance(exc, OSError):
        known = from_os_error(exc, "go on")
        if known.exit_code != NydusServiceError.exit_code:
            return _fail(str(known), known.exit_code)
    if verbose:
        traceback.print_exception(exc)
        return _fail("that was not expected; please report it, with the lines above", 1)
    reason = traceback.format_exception_only(exc)[-1].strip()
    return _fail(f"unexpected {reason}\n  add -v for the traceback", 1)


if __name__ == "__main__":
    sys.exit(main())
