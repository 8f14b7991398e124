"""``datamix inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import PATH


@click.command()
@click.argument("path", type=PATH, required=False)
@click.option("--row", type=int, help="Show this row.")
@click.option(
    "--stats",
    is_flag=True,
    help="A set: lengths, shares, vocabulary. A file: what each cleaning step would do.",
)
@click.option("--removed", is_flag=True, help="Duplicates side by side with what was kept.")
@click.option(
    "--html",
    type=PATH,
    is_flag=False,
    flag_value=Path("-"),
    metavar="[FILE]",
    help="A page of a hundred rows, printed, or written to FILE.",
)
def inspect(path: Path | None, row: int | None, stats: bool, removed: bool, html: Path | None) -> None:
    """Show records of a file, or rows of a built set with their trained tokens coloured."""
    from datamix.jobs.output_files import write_page
    from datamix.reporting.inspection import show

    if path is None:  # `inspect --html OUT`: the option took the argument for its file
        path, html = html, Path("-")
    if path is None:
        raise click.UsageError("Missing argument 'PATH'.")
    shown = show(path, row, stats, removed, html is not None)
    if html is None or html == Path("-"):
        click.echo(shown)
    else:
        write_page(html, shown, [str(path), str(path / "report.html")])
        click.echo(f"Wrote {html}")
