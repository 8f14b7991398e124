"""Work on files without a build: init, check, convert, deduplicate."""
