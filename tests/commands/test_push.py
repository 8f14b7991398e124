"""``datamix push``: the listed files, the manifest and the card go to a dataset repository; what others put there stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hub_stub
import pytest
import small
import yaml
from click.testing import CliRunner
from hub_server import hub_server

import datamix
from datamix.commands.cli import cli
from datamix.core.errors import DataError, MachineError, RecipeError
from datamix.jobs.build import build
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, bytes]]:
    monkeypatch.setattr(hub_stub, "REPOSITORIES", {})
    monkeypatch.setattr(hub_stub, "PRIVATE", {})
    monkeypatch.setattr("huggingface_hub.HfApi", hub_stub.Hub)
    return hub_stub.REPOSITORIES


def built(folder: Path, **changes: Any) -> Path:
    path = small.recipe(folder, **changes)
    build(Recipe.read(path), Options(folder / "out", folder / ".datamix", 1, overwrite=True))
    return folder / "out"


def test_every_listed_file_and_the_manifest_are_pushed_to_a_private_repository(
    tmp_path: Path, hub: dict[str, dict[str, bytes]]
) -> None:
    out = built(tmp_path)
    done = CliRunner().invoke(cli, ["push", str(out), "hf://me/small"], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.output.strip() == "https://hub.test/datasets/me/small/commit/1"
    listed = {e["path"] for e in json.loads((out / "manifest.json").read_bytes())["outputs"]}
    assert set(hub["me/small"]) == {*listed, "manifest.json", ".gitattributes"}
    assert {"README.md", "report.html"} <= listed
    for name in listed:
        assert hub["me/small"][name] == (out / name).read_bytes()
    assert hub_stub.PRIVATE == {"me/small": True}


def test_a_second_push_removes_what_the_first_set_had_and_nothing_else(
    tmp_path: Path, hub: dict[str, dict[str, bytes]]
) -> None:
    datamix.push(built(tmp_path), "hf://datasets/me/small")
    hub["me/small"]["notes.txt"] = b"mine"
    assert "jsonl/train/00000.jsonl" in hub["me/small"] or any(
        n.startswith("jsonl/") for n in hub["me/small"]
    )
    datamix.push(built(tmp_path, write=["parquet"]), "hf://me/small")
    assert not any(name.startswith("jsonl/") for name in hub["me/small"])
    assert hub["me/small"]["notes.txt"] == b"mine"
    assert hub["me/small"]["manifest.json"] == (tmp_path / "out" / "manifest.json").read_bytes()


def test_a_card_that_was_edited_on_the_hub_stays(tmp_path: Path, hub: dict[str, dict[str, bytes]]) -> None:
    out = built(tmp_path)
    datamix.push(out, "hf://me/small")
    hub["me/small"]["README.md"] = b"# mine"
    datamix.push(out, "hf://me/small")
    assert hub["me/small"]["README.md"] == b"# mine"


def test_rows_of_somebody_else_in_the_splits_are_refused(
    tmp_path: Path, hub: dict[str, dict[str, bytes]]
) -> None:
    hub["me/small"] = {"train/other.parquet": b"x"}
    with pytest.raises(
        RecipeError, match=r"holds train/other.parquet, which no manifest of datamix there lists"
    ):
        datamix.push(built(tmp_path), "hf://me/small")
    assert hub["me/small"] == {"train/other.parquet": b"x"}


def test_a_virtual_set_a_damaged_one_and_another_address_are_refused(tmp_path: Path) -> None:
    out = built(tmp_path)
    for target in ("me/small", "s3://bucket/x", "hf://me", "hf://models/a/b"):
        with pytest.raises(RecipeError, match="is no dataset of the Hub"):
            datamix.push(out, target)
    (out / "report.html").write_text("short")
    with pytest.raises(DataError, match=r"report\.html is missing or not as the manifest lists it"):
        datamix.push(out, "hf://me/small")
    with pytest.raises(RecipeError, match="no finished set"):
        datamix.push(tmp_path, "hf://me/small")
    with pytest.raises(RecipeError, match=r"export .* --to parquet"):
        datamix.push(built(tmp_path, write=[]), "hf://me/small")


def test_what_the_hub_refuses_is_the_machines_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalTokenNotFoundError

    def refuse(*_: object, **__: object) -> None:
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(hub_stub.Hub, "create_repo", refuse)
    with pytest.raises(MachineError, match="cannot be written: no token Log in with `hf auth login`"):
        datamix.push(built(tmp_path), "hf://me/small")


def _card(folder: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    text = (built(folder, **changes) / "README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_card_has_the_hubs_header_and_the_sources_with_their_licences(tmp_path: Path) -> None:
    sources = {
        "general": {"path": "general.jsonl", "weight": 0.7, "license": "CC-BY-4.0"},
        "medical": {"path": "medical.jsonl", "weight": 0.3, "license": "Clinic | 2024"},
    }
    header, body = _card(tmp_path, sources=sources)
    assert header["license"] == ["cc-by-4.0", "other"]
    assert header["license_name"] == "Clinic | 2024"
    assert header["configs"][0]["data_files"] == [
        {"split": "train", "path": "train/*.parquet"},
        {"split": "validation", "path": "validation/*.parquet"},
    ]
    assert header["tags"] == ["datamix", "sft"]
    assert "| general |  | CC-BY-4.0 | 300 |" in body
    assert "| medical |  | Clinic \\| 2024 | 200 |" in body
    assert "Deduplicated across sources: exact duplicates and near duplicates (Jaccard ≥ 0.8)." in body
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["recipe"]["sources"]["general"]["license"] == "CC-BY-4.0"
    assert "CC-BY-4.0 (general); Clinic | 2024 (medical)" in (tmp_path / "out/report.html").read_text("utf-8")
    assert all(check.ok for check in datamix.verify(tmp_path / "out"))


def test_a_set_without_licences_says_unknown(tmp_path: Path) -> None:
    header, body = _card(tmp_path)
    assert header["license"] == "unknown"
    assert "| general |  | not given |" in body


def test_datasets_loads_the_pushed_folder_by_its_card(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(str(built(tmp_path)), cache_dir=str(tmp_path / "hf"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert set(rows) == {"train", "validation"}
    assert rows["train"].num_rows == manifest["packing"]["rows"]


def test_a_readme_of_somebody_else_in_out_stays(tmp_path: Path) -> None:
    out = built(tmp_path)
    (out / "README.md").write_text("mine", encoding="utf-8")
    manifest = json.loads((out / "manifest.json").read_bytes())
    manifest["outputs"] = [e for e in manifest["outputs"] if e["path"] != "README.md"]
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    built(tmp_path, seed=7)
    assert (out / "README.md").read_text(encoding="utf-8") == "mine"
    assert all(check.ok for check in datamix.verify(out))


@pytest.mark.parametrize(
    ("licence", "problem"),
    [
        (None, "sources.medical.license: is missing, and licenses.allow takes only CC-BY-4.0, MIT"),
        ("GPL-3.0", "sources.medical.license: is 'GPL-3.0', and licenses.allow takes only CC-BY-4.0, MIT"),
    ],
)
def test_a_licence_that_is_not_allowed_stops_before_work(
    tmp_path: Path, licence: str | None, problem: str
) -> None:
    medical = {"path": "nowhere.jsonl"} | ({"license": licence} if licence else {})
    sources = {"general": {"path": "general.jsonl", "license": "mit"}, "medical": medical}
    path = small.recipe(tmp_path, sources=sources, licenses={"allow": ["CC-BY-4.0", "MIT"]})
    for command in ("plan", "build"):
        done = small.datamix(command, path, "-o", tmp_path / "out")
        assert done.returncode == 2
        assert problem in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_recipe_without_licences_has_the_fingerprint_it_had(tmp_path: Path) -> None:
    recipe = Recipe.read(small.recipe(tmp_path))
    assert "licenses" not in recipe.resolved()
    assert all("license" not in source for source in recipe.resolved()["sources"].values())


def test_verify_finds_a_licence_that_the_recipe_does_not_allow(tmp_path: Path) -> None:
    from datamix.core.hashing import digest

    sources = {name: {"path": f"{name}.jsonl", "license": "MIT"} for name in ("general", "medical")}
    out = built(tmp_path, sources=sources, licenses={"allow": ["MIT"]})
    manifest = json.loads((out / "manifest.json").read_bytes())
    manifest["recipe"]["sources"]["general"]["license"] = "GPL-3.0"
    manifest["recipe_sha256"] = digest(manifest["recipe"])
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    failed = {check.name: check.detail for check in datamix.verify(out) if not check.ok}
    assert failed == {"recipe": "source general has a licence that licenses.allow does not allow"}


def test_a_push_over_http_names_the_repository_and_sends_every_file(tmp_path: Path) -> None:
    out = built(tmp_path)
    with hub_server() as server:
        settings = {"HF_ENDPOINT": server.address, "HF_TOKEN": "hf_test", "HF_HOME": str(tmp_path / "hf")}
        done = small.datamix("push", out, "hf://me/small", **settings, HF_HUB_DISABLE_XET="1")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().startswith(f"{server.address}/datasets/me/small/commit/")
        assert server.created[0]["name"] == "small"
        assert server.created[0].get("visibility", "private") == "private"
        assert {token for path, token in server.requests if path.startswith("/api/repos")} == {
            "Bearer hf_test"
        }
        listed = [e["path"] for e in json.loads((out / "manifest.json").read_bytes())["outputs"]]
        assert server.files == {name: (out / name).read_bytes() for name in [*listed, "manifest.json"]}
    done = small.datamix("push", out, "hf://me/small", **settings, HF_HUB_DISABLE_XET="1")
    assert done.returncode == 4
    assert "hf://me/small cannot be written" in done.stderr
