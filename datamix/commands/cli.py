"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datamix import __version__
from datamix.core.errors import DatamixError, Interrupted, mask_secrets

if TYPE_CHECKING:
    from datamix.pipeline.progress import Screen

_PATH = click.Path(path_type=Path)


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
    """Commands in the order of a person's work, not of the alphabet; each takes ``--debug``, as the group does."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.params.append(_debug_option())
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Cli, params=[_debug_option()], context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="datamix")
def cli() -> None:
    """Raw corpora in, a verified training set out.

    Start with `datamix init DATA -o recipe.yaml`, then `plan`, `build` and `verify`.
    """


@cli.command()
@click.argument("paths", nargs=-1, required=True)
@click.option(
    "-o", "--output", type=_PATH, default=Path("recipe.yaml"), show_default=True, help="The recipe to write."
)
@click.option(
    "--kind",
    type=click.Choice(["pretrain", "sft", "preference", "prompt"]),
    help="What to build; default: what most files hold.",
)
@click.option("--overwrite", is_flag=True, help="Replace the recipe if it exists.")
def init(paths: tuple[str, ...], output: Path, kind: str | None, overwrite: bool) -> None:
    """Look into files or folders and write a commented recipe that builds as it stands."""
    from datamix.jobs.init import init as look
    from datamix.jobs.output_files import check_outputs, complete_files
    from datamix.read import find

    inputs = [
        p for path in paths for p in find([path], ".") if p in paths or not p.endswith((".yaml", ".yml"))
    ]
    check_outputs([output], inputs, overwrite)
    text = look(list(paths), kind, str(output.parent))
    with complete_files([output]) as (draft,):
        draft.write_text(text, encoding="utf-8")
    click.echo(f"Wrote {output}. Next: datamix plan {output}")


@cli.command()
@click.argument("recipe", type=_PATH)
@click.option("--exact", is_flag=True, help="Prepare and encode into the cache first: every number exact.")
@click.option(
    "--batch", type=click.IntRange(min=1), help="Also say what a global batch of this many rows holds."
)
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON.")
@click.option("-o", "--output", type=_PATH, help="The folder the set would stand in; default: ./NAME.")
@click.option("--cache", type=_PATH, help="Where prepared data is kept; default: .datamix beside OUT.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one a processor.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Change one value of the recipe."
)
def plan(
    recipe: Path, exact: bool, batch: int | None, as_json: bool, output: Path | None, cache: Path | None, workers: int | None,
    overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Say what a build would do: every recipe error first, then the table of the mixture."""
    from datamix.pipeline.planning import make_plan
    from datamix.pipeline.state import Options
    from datamix.recipe import Recipe
    from datamix.reporting.summaries import plan_table

    read = Recipe.read(recipe, overrides)
    out = output or Path(read.name)
    made = make_plan(read, Options(out, cache or _cache(out), workers or 0), exact, batch, _screen())
    if as_json:
        import json

        click.echo(json.dumps(made, ensure_ascii=False, indent=2))
    else:
        click.echo(plan_table(made))


@cli.command()
@click.argument("recipe", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="The folder to write; default: ./NAME.")
@click.option("--cache", type=_PATH, help="Where prepared data is kept; default: .datamix beside OUT.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one a processor.")
@click.option(
    "--engine",
    type=click.Choice(["local"]),
    default="local",
    show_default=True,
    expose_value=False,  # nothing to choose from yet
    help="Where tasks run.",
)
@click.option(
    "--sample", type=click.IntRange(min=1), help="Read only so many records of each file: a first look."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Change one value of the recipe."
)
@click.option("--overwrite", is_flag=True, help="Replace a finished set that another recipe built.")
def build(
    recipe: Path, output: Path | None, cache: Path | None, workers: int | None, sample: int | None,
    overrides: tuple[str, ...], overwrite: bool,
) -> None:  # fmt: skip
    """Build the training set of a recipe. Run it again after any stop: it goes on where it was."""
    from datamix.jobs.build import build as run_build
    from datamix.pipeline.notices import encode_warnings
    from datamix.pipeline.state import Options
    from datamix.recipe import Recipe
    from datamix.reporting.summaries import closing

    read = Recipe.read(recipe, overrides)
    out = output or Path(read.name)
    options = Options(out, cache or _cache(out), workers or 0, sample, overwrite)
    screen = _screen()
    manifest = run_build(read, options, screen)
    click.echo(closing(manifest, out, options.cache))
    for line in encode_warnings(manifest):
        click.echo(line)


@cli.command()
@click.argument("out", type=_PATH)
@click.option(
    "--inputs",
    type=click.FloatRange(min=0, max=1),
    is_flag=False,
    flag_value=0.01,
    metavar="[SHARE]",
    help="Also read the raw files, and make a share of the rows again from them; 1 is all. Default share: 0.01.",
)
def verify(out: Path, inputs: float | None) -> None:
    """Recount everything the manifest claims from the files themselves; exit 1 if a promise does not hold."""
    from datamix.audit import verify as recount
    from datamix.pipeline.out_folder import clear_failed, mark_failed

    checks = recount(out, inputs)
    for check in checks:
        mark = click.style("ok  ", fg="green") if check.ok else click.style("FAIL", fg="red", bold=True)
        click.echo(f"{mark} {check.name:<14} {check.detail}")
    if not all(check.ok for check in checks):
        mark_failed(out)
        sys.exit(1)
    clear_failed(out)


@cli.command()
@click.argument("path", type=_PATH)
@click.option("--row", type=int, help="Show this row.")
@click.option(
    "--stats",
    is_flag=True,
    help="A set: lengths, shares, vocabulary. A file: what each cleaning step would do.",
)
@click.option("--removed", is_flag=True, help="Duplicates side by side with what was kept.")
@click.option("--html", is_flag=True, help="A page of a hundred rows.")
def inspect(path: Path, row: int | None, stats: bool, removed: bool, html: bool) -> None:
    """Show records of a file, or rows of a built set with their trained tokens coloured."""
    from datamix.reporting.inspection import show

    click.echo(show(path, row, stats, removed, html))


@cli.command()
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--as",
    "kind",
    type=click.Choice(["text", "sft", "preference", "prompt"]),
    help="The kind they should be.",
)
def check(files: tuple[str, ...], kind: str | None) -> None:
    """Validate records: which line, which field, why. Exit 1 if one does not fit."""
    from datamix.jobs.check import check as validate

    problems = 0
    for problem in validate(list(files), kind):
        problems += 1
        click.echo(str(problem))
    if problems:
        click.echo(f"{problems:,} problem{'s' * (problems != 1)}.", err=True)
        sys.exit(1)
    click.echo("Every record fits.")


@cli.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--to", required=True, metavar="FORMAT", help="alpaca, sharegpt, messages, ...")
@click.option("--lossy", is_flag=True, help="Allow what the format cannot hold to be lost.")
@click.option("--overwrite", is_flag=True, help="Replace the target if it exists.")
def convert(source: str, target: str, to: str, lossy: bool, overwrite: bool) -> None:
    """Turn one file of records into another format."""
    from datamix.jobs.convert import convert as turn

    click.echo(str(turn(source, target, to, lossy=lossy, overwrite=overwrite)))


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="IN...")
@click.option("-o", "--output", required=True, help="The file to write; the audit stands beside it.")
@click.option(
    "--threshold", type=float, default=0.8, show_default=True, help="Jaccard similarity of near duplicates."
)
@click.option("--exact-only", is_flag=True, help="Leave near duplicates alone.")
@click.option("--scope", type=click.Choice(["across", "within"]), default="across", show_default=True)
@click.option(
    "--keep", type=click.IntRange(min=1), default=1, show_default=True, help="Records kept per cluster."
)
@click.option("--longest", is_flag=True, help="Keep the longest of a cluster, not the first.")
@click.option("--column", help="Compare this column as text, whatever the records are.")
@click.option("--overwrite", is_flag=True, help="Replace the target and its audit if they exist.")
def dedupe(
    inputs: tuple[str, ...], output: str, threshold: float, exact_only: bool, scope: Any, keep: int, longest: bool,
    column: str | None, overwrite: bool,
) -> None:  # fmt: skip
    """Deduplicate files on their own, with the engine and the audit of a build."""
    from datamix.dedup import DedupeSpec, NearSpec
    from datamix.jobs.deduplicate import deduplicate

    near = None if exact_only else NearSpec(threshold=threshold)
    spec = DedupeSpec(near=near, scope=scope, keep=keep, rank_by="longest" if longest else "first")
    click.echo(str(deduplicate(list(inputs), output, spec, column, overwrite)))


@cli.command()
@click.argument("out", type=_PATH)
@click.argument("more", nargs=-1, metavar="")
@click.option(
    "--to",
    "formats",
    multiple=True,
    required=True,
    metavar="FORMAT...",
    help="megatron llamafactory trl ...; an option as name:key=value.",
)
@click.option("--cache", type=_PATH, help="Where the build kept its data; default: .datamix beside OUT.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one a processor.")
def export(
    out: Path, more: tuple[str, ...], formats: tuple[str, ...], cache: Path | None, workers: int | None
) -> None:
    """Write an already built set in further trainer formats: datamix export OUT --to megatron trl."""
    from datamix.pipeline.exporting import export as write
    from datamix.pipeline.exporting import parse_format
    from datamix.pipeline.opening import read_manifest
    from datamix.pipeline.progress import short_bytes

    listed = write(out, [parse_format(f) for f in (*formats, *more)], cache, workers or 0, _screen())
    commands = (read_manifest(out) or {}).get("commands", {})
    for name in dict.fromkeys(entry["format"] for entry in listed):
        own = [entry for entry in listed if entry["format"] == name]
        kept = ", ".join(own[0]["keeps"]) or "nothing of the mixture"
        size = short_bytes(sum(e["bytes"] for e in own))
        click.echo(f"{name:<14} {len(own):>4} files {size:>10}   keeps {kept}")
        if name in commands:
            click.echo(f"{'':<15}next, in {out / name}: {commands[name]}")


@cli.command()
@click.argument("recipe", type=_PATH)
@click.option(
    "--vary",
    required=True,
    metavar="NAME=SHARES",
    help="A source or group and its shares: general=0,0.05,0.25.",
)
@click.option(
    "-o", "--output", type=_PATH, help="Folders are OUT-NAME-SHARE; default OUT: ./NAME of the recipe."
)
@click.option(
    "--scale", type=float, default=1.0, show_default=True, help="Shrink every source and the size alike."
)
@click.option("--cache", type=_PATH, help="Where prepared data is kept; default: .datamix beside OUT.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one a processor.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Change one value of the recipe."
)
@click.option("--overwrite", is_flag=True, help="Replace finished sets that another recipe built.")
def sweep(
    recipe: Path, vary: str, output: Path | None, scale: float, cache: Path | None, workers: int | None,
    overrides: tuple[str, ...], overwrite: bool,
) -> None:  # fmt: skip
    """Make a ladder of mixtures from one preparation; each is a virtual set, a schedule of a few bytes a row."""
    from datamix.jobs.sweep import sweep as make
    from datamix.pipeline.state import Options
    from datamix.recipe import Recipe
    from datamix.reporting.summaries import ladder_table

    read = Recipe.read(recipe, overrides)
    out = output or Path(read.name)
    options = Options(out, cache or _cache(out), workers or 0, overwrite=overwrite)
    click.echo(ladder_table(make(read, vary, options, scale, _screen()), scale))


@cli.command()
@click.argument("name", default="recipe")
def schema(name: str) -> None:
    """Print a published JSON Schema: recipe, text, sft, preference, prompt, row or manifest."""
    from datamix.recipe.schemas import schema_text

    click.echo(schema_text(name), nl=False)


@cli.command()
@click.option("--cache", type=_PATH, default=Path(".datamix"), show_default=True)
@click.option("--prune", is_flag=True, help="Remove what no set beside the cache needs.")
def cache(cache: Path, prune: bool) -> None:
    """Say what the cache holds and its size."""
    from datamix.pipeline.cache_contents import cache_text
    from datamix.pipeline.cache_contents import prune as take_out

    click.echo(take_out(cache) if prune else cache_text(cache))


def _cache(out: Path) -> Path:
    from datamix.pipeline.opening import default_cache

    return default_cache(out)


def _screen() -> Screen:
    from datamix.pipeline.progress import Screen

    return Screen()


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; expected failures are one paragraph on stderr and an exit code."""
    import gc

    # Imports and tokenizers make objects by the hundred thousand, and hardly a ring among them.
    gc.set_threshold(500_000)
    settings: dict[str, bool] = {}  # filled by --debug, wherever it stands
    try:
        return cli.main(args=arguments, prog_name="datamix", standalone_mode=False, obj=settings)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail(
            Interrupted("Stopped. What was finished is kept: run the same command again and it continues."),
            settings,
        )
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except DatamixError as error:
        _fail(error, settings)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if settings.get("debug"):
            click.echo(mask_secrets("".join(traceback.format_exception(error))), err=True, nl=False)
            sys.exit(DatamixError.exit_code)
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        _fail(
            DatamixError(
                f"something unexpected happened: {said}. This is a defect of datamix, not of your data: please report it "
                "with the output of the same command under --debug. What was finished is kept."
            ),
            settings,
        )


def _fail(error: DatamixError, settings: dict[str, bool]) -> None:
    if settings.get("debug"):
        click.echo(mask_secrets("".join(traceback.format_exception(error))), err=True, nl=False)
        sys.exit(error.exit_code)
    click.echo(click.style("datamix: ", fg="red") + str(error), err=True)
    sys.exit(error.exit_code)
