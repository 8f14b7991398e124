"""The command line: one file a command, and their errors as one paragraph and an exit code. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import gc
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from datamix import __version__
from datamix.commands.build import build
from datamix.commands.cache import cache
from datamix.commands.check import check
from datamix.commands.convert import convert
from datamix.commands.dedupe import dedupe
from datamix.commands.diff import diff
from datamix.commands.exclude import exclude
from datamix.commands.export import export
from datamix.commands.init import init
from datamix.commands.inspect import inspect
from datamix.commands.plan import plan
from datamix.commands.propose import propose
from datamix.commands.push import push
from datamix.commands.recommend import recommend
from datamix.commands.report import report
from datamix.commands.schema import schema
from datamix.commands.score import score
from datamix.commands.sweep import sweep
from datamix.commands.synth import synth
from datamix.commands.trace import trace
from datamix.commands.verify import verify
from datamix.commands.worker import worker
from datamix.core.errors import DatamixError, InternalError, Interrupted, mask_secrets, visible

_SET_READERS = ("verify", "inspect", "diff", "report", "export", "push", "trace")
EXAMPLES = {
    "init": [
        "datamix init data/ -o recipe.yaml",
        "datamix init --from lf_train.yaml data/dataset_info.json -o recipe.yaml",
    ],
    "plan": ["datamix plan recipe.yaml", "datamix plan recipe.yaml --exact --batch 128 --set mix.size=50M"],
    "build": [
        "datamix build recipe.yaml",
        "datamix build recipe.yaml -o out --set seed=7 --overwrite",
        "datamix build recipe.yaml --quiet --log build.jsonl --json",
    ],
    "verify": ["datamix verify out", "datamix verify out --inputs 0.05"],
    "inspect": ["datamix inspect data.jsonl", "datamix inspect out --row 3", "datamix inspect out --stats"],
    "check": ["datamix check data/*.jsonl --as sft"],
    "convert": ["datamix convert alpaca.json chat.jsonl --to messages"],
    "dedupe": [
        "datamix dedupe a.jsonl b.jsonl -o unique.jsonl",
        "datamix dedupe pages.parquet -o unique.parquet --column text --threshold 0.7",
    ],
    "export": ["datamix export out --to llamafactory trl", "datamix export out --to megatron:layout=blocks"],
    "score": [
        "datamix score recipe.yaml --by nll:path/to/model -o scores.parquet",
        "datamix score web.jsonl --by dsir:medical.jsonl --name medical",
    ],
    "propose": [
        "datamix propose recipe.yaml --runs 9 -o runs",
        "datamix propose recipe.yaml --runs 24 --scale 0.1",
    ],
    "recommend": [
        "datamix recommend runs --recipe recipe.yaml -o recommended",
        "datamix recommend runs.csv --target medical --keep 'general <= base + 0.01'",
        "datamix recommend runs.csv --predict other.csv -o predicted --json",
    ],
    "sweep": ["datamix sweep recipe.yaml --vary general=0,0.05,0.25 -o ladder"],
    "synth": ["datamix synth replay.yaml", "datamix synth replay.yaml -o replay --set size=2000"],
    "schema": ["datamix schema recipe > recipe.schema.json"],
    "cache": ["datamix cache", "datamix cache --prune"],
    "diff": ["datamix diff out1 out2", "datamix diff out1 out2 --html > diff.html"],
    "exclude": ["datamix exclude out --by out.jsonl"],
    "trace": ["datamix trace out --row 3", "datamix trace out --row 0 --split validation --json"],
    "push": ["datamix push out hf://OWNER/NAME"],
    "report": ["datamix report out --language zh", "datamix report out --losses out/losses.jsonl"],
    "worker": ["datamix worker /shared/.datamix", "datamix worker /shared/.datamix --index 3/64 --idle 60"],
}


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_debug,
        help="Show a traceback when something fails.",
    )


def _set_debug(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(dict)["debug"] = True


class _Cli(click.Group):
    """Commands in the order of use, not of the alphabet; each takes ``--debug``, as the group does."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.params.append(_debug_option())
        examples = "\n".join(f"  {example}" for example in EXAMPLES[cmd.name or ""])
        cmd.epilog = f"\b\nExamples:\n{examples}"
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Cli, params=[_debug_option()], context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="datamix")
def cli() -> None:
    """Raw corpora in, a verified training set out.

    Start with `datamix init DATA -o recipe.yaml`, then `plan`, `build` and `verify`.
    """


for _command in (
    init,
    plan,
    build,
    verify,
    inspect,
    report,
    diff,
    check,
    convert,
    dedupe,
    export,
    trace,
    exclude,
    push,
    sweep,
    score,
    propose,
    recommend,
    synth,
    schema,
    cache,
    worker,
):
    cli.add_command(_command)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; expected failures are one paragraph on stderr and an exit code."""
    # Imports and tokenizers allocate hundreds of thousands of objects and almost no cycles.
    gc.set_threshold(500_000)
    settings: dict[str, bool] = {}  # filled by --debug, in any position
    try:
        with _interrupted_by_signals():
            return cli.main(args=arguments, prog_name="datamix", standalone_mode=False, obj=settings)
    except click.ClickException as error:
        import io

        usage = io.StringIO()
        error.show(usage)
        click.echo(visible(mask_secrets(usage.getvalue())), err=True, nl=False)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except (Exception, KeyboardInterrupt) as error:
        known = _known(error)
        if isinstance(known, InternalError) and not isinstance(error, InternalError):
            known = _of_damaged_set(arguments or sys.argv[1:], error) or known
        if settings.get("debug"):
            click.echo(visible(mask_secrets("".join(traceback.format_exception(error)))), err=True, nl=False)
        else:
            click.echo(click.style("datamix: ", fg="red") + visible(str(known)), err=True)
        sys.exit(known.exit_code)


class _Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP, as Ctrl-C is a KeyboardInterrupt; the number is its argument."""


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Meanwhile SIGTERM and SIGHUP stop the command as Ctrl-C does; a second one ends it at once. Under nohup SIGHUP is ignored."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise _Stopped(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _of_damaged_set(arguments: list[str], error: BaseException) -> DatamixError | None:
    """The error as one of a damaged set, where a command that reads sets was given one that ``verify`` finds broken."""
    from datamix.audit import verify as recount
    from datamix.core.errors import DataError

    if arguments[:1] and arguments[0] not in _SET_READERS:
        return None
    for name in arguments[1:]:
        out = Path(name)
        if not (out / "manifest.json").is_file():
            continue
        try:
            broken = [check.name for check in recount(out) if not check.ok]
        except Exception:
            broken = ["its files"]
        if broken:
            what = str(error).strip().splitlines() or [type(error).__name__]
            return DataError(
                f"{out} is damaged, or was not written by datamix ({what[0][:200]}). `datamix verify {out}` finds fault with "
                f"{', '.join(broken[:5])}: build it again, or get it again."
            )
    return None


def _known(error: BaseException) -> DatamixError:
    """The error as one that a user can act on."""
    if isinstance(error, DatamixError):
        return error
    if isinstance(error, click.exceptions.Abort | KeyboardInterrupt):
        cause = error if isinstance(error, _Stopped) else error.__cause__
        number = cause.args[0] if isinstance(cause, _Stopped) else signal.SIGINT
        return Interrupted(
            "Stopped. Finished work is saved: run the same command again and it continues.", number
        )
    from datamix.core.machine import machine_failure

    if (failure := machine_failure(error)) is not None:
        return failure
    name = type(error).__name__
    return InternalError(
        f"Something unexpected happened: {name}{': ' if str(error) else ''}{error}. This is a bug in datamix: please report it with "
        "the output of the same command under --debug. Finished work is saved."
    )
