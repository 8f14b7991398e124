"""A stand-in for ``huggingface_hub.HfApi``: repositories are dicts of files, as far as pushing a set needs them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPOSITORIES: dict[str, dict[str, bytes]] = {}
PRIVATE: dict[str, bool] = {}


class Hub:
    """The calls of HfApi with their keywords; state is shared, as the Hub's is."""

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        assert repo_type == "dataset"
        assert exist_ok
        if repo_id not in REPOSITORIES:
            REPOSITORIES[repo_id], PRIVATE[repo_id] = {".gitattributes": b""}, private

    def list_repo_files(self, repo_id: str, *, repo_type: str, revision: str | None) -> list[str]:
        return sorted(REPOSITORIES[repo_id])

    def hf_hub_download(self, repo_id: str, filename: str, *, repo_type: str, revision: str | None) -> str:
        path = Path(tempfile.mkdtemp()) / filename
        path.write_bytes(REPOSITORIES[repo_id][filename])
        return str(path)

    def create_commit(
        self,
        repo_id: str,
        operations: list[Any],
        *,
        commit_message: str,
        repo_type: str,
        revision: str | None,
    ) -> SimpleNamespace:
        files = REPOSITORIES[repo_id]
        for operation in operations:
            if hasattr(operation, "path_or_fileobj"):
                with operation.as_file() as stream:
                    files[operation.path_in_repo] = stream.read()
            else:
                del files[operation.path_in_repo]
        return SimpleNamespace(commit_url=f"https://hub.test/datasets/{repo_id}/commit/1")
