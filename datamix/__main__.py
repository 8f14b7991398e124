"""``python -m datamix``."""

from .cli import main

main()
