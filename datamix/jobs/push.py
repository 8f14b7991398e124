"""``datamix push``: a finished set and its card to a dataset repository of the Hugging Face Hub, in one commit.

Pushed are the files that the manifest lists, and the manifest. Files of the set that was there before, by the manifest in the
repository, go; any other file there stays. A new repository is private.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamix.core.errors import DataError, MachineError, RecipeError, mask_secrets
from datamix.pipeline.exporting import finished_manifest
from datamix.pipeline.out_folder import MANIFEST
from datamix.pipeline.publish import CARD
from datamix.reporting import render_card

_TARGET = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")
_READ_BY_PATTERN = ("train/", "validation/")  # the card's splits are all Parquet files there


def push(out: Path, target: str) -> str:
    """Push the set in ``out`` to ``hf://OWNER/NAME`` (``@BRANCH``); returns the address of the commit.

    Raises RecipeError for another address, a virtual set, or a repository whose splits hold files of somebody else; DataError
    where a file of the set is missing or has another size; MachineError where the Hub refuses or is not reached.
    """
    match = _TARGET.fullmatch(target)
    if match is None:
        raise RecipeError(
            f"{target} is no dataset of the Hub. Write hf://OWNER/NAME, such as hf://me/medical-sft."
        )
    repo, revision = match[1], match[2]
    manifest = finished_manifest(out)
    if manifest.get("virtual") and not any(e["path"].startswith("train/") for e in manifest["outputs"]):
        raise RecipeError(
            f"The rows of {out} are in the cache alone. Run `datamix export {out} --to parquet` first."
        )
    files: dict[str, Path | bytes] = {entry["path"]: out / entry["path"] for entry in manifest["outputs"]}
    for entry in manifest["outputs"]:
        path = out / entry["path"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise DataError(
                f"{path} is missing or not as the manifest lists it. `datamix build` repairs the set."
            )
    files |= {MANIFEST: out / MANIFEST} | ({} if CARD in files else {CARD: render_card(manifest).encode()})
    with _hub_errors(target):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi  # heavy

        api = HfApi()
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        there = api.list_repo_files(repo, repo_type="dataset", revision=revision)
        listed = _listed_there(api, repo, revision, there)
        foreign = [name for name in there if name not in listed and name.startswith(_READ_BY_PATTERN)]
        if foreign:
            raise RecipeError(
                f"{target} holds {foreign[0]}, which no manifest of datamix there lists, and readers would take it for a part of this "
                "set. Choose another name, or remove it there."
            )
        if CARD in there and not _is_ours(api, repo, revision, listed.get(CARD)):
            del files[CARD]  # written by its owner: it stays
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=file)
            for name, file in sorted(files.items())
        ]
        old = sorted((set(listed) & set(there)) - set(files) - {CARD})
        operations += [CommitOperationDelete(path_in_repo=name) for name in old]
        message = f"{manifest['name']}: {manifest['packing']['rows']:,} rows"
        commit = api.create_commit(
            repo, operations, commit_message=message, repo_type="dataset", revision=revision
        )
        return str(commit.commit_url)


def _listed_there(api: Any, repo: str, revision: str | None, there: list[str]) -> dict[str, str | None]:
    """The files of the set in the repository with their digests, by its manifest; none where it has no manifest."""
    if MANIFEST not in there:
        return {}
    path = api.hf_hub_download(repo, MANIFEST, repo_type="dataset", revision=revision)
    try:
        entries = json.loads(Path(path).read_bytes())["outputs"]
        return {MANIFEST: None} | {entry["path"]: entry["sha256"] for entry in entries}
    except (ValueError, KeyError, TypeError):
        return {}


def _is_ours(api: Any, repo: str, revision: str | None, sha256: str | None) -> bool:
    """Whether the card in the repository is the one that the manifest there lists."""
    card = Path(api.hf_hub_download(repo, CARD, repo_type="dataset", revision=revision)).read_bytes()
    return hashlib.sha256(card).hexdigest() == sha256


@contextmanager
def _hub_errors(target: str) -> Iterator[None]:
    """What the Hub refuses, as errors that a person can act on."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    # The bases: any error of the HTTP client, which differs by version.
    failures: tuple[type[Any], ...] = (LocalTokenNotFoundError, *HfHubHTTPError.__bases__)
    try:
        yield
    except failures as error:
        first = str(error).strip().splitlines()
        raise MachineError(
            f"{target} cannot be written: {mask_secrets(first[0] if first else type(error).__name__)} Log in with `hf auth login` or set "
            "HF_TOKEN to a token that may write there, and check the network (HF_ENDPOINT names another Hub)."
        ) from error
