"""``python -m datamix``."""

from datamix.commands.cli import main

main()
