"""Every command is run as a user types it, with each of its options; a new option needs a line here."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from pathlib import Path

import click
import hub_stub
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from fake_host import FakeHost
from small import alpaca, datamix, recipe, write_jsonl

from datamix.commands.cli import EXAMPLES, cli
from datamix.core.errors import RecipeError

CALLS = """
init data.jsonl -o {tmp}/new.yaml --kind sft
init data.jsonl -o {tmp}/new.yaml --overwrite --tokenizer tokenizer
init --from blend.txt -o {tmp}/from.yaml
plan recipe.yaml --exact --batch 64 -o {tmp}/set --cache {tmp}/cache --workers 1 --set seed=7
plan recipe.yaml --json -o {tmp}/set --cache {tmp}/cache --set seed=7
plan recipe.yaml --tree --cluster 64x16 -o {tmp}/set --cache {tmp}/cache --set seed=7
build recipe.yaml -o {tmp}/set --cache {tmp}/cache --workers 1 --engine local
build recipe.yaml -o {tmp}/trial --cache {tmp}/cache --sample 50 --set name=trial --debug
build recipe.yaml -o {tmp}/set --cache {tmp}/cache --set mix.size=2000 --overwrite
build recipe.yaml -o {tmp}/set --cache {tmp}/cache --set mix.size=2000 --quiet --log {tmp}/build.jsonl --json
verify {tmp}/set
verify {tmp}/set --inputs 0.5
inspect data.jsonl
inspect {tmp}/set --row 0
inspect {tmp}/set --stats
inspect {tmp}/set --removed
inspect {tmp}/set --html
inspect {tmp}/set --html {tmp}/page.html
inspect {tmp}/set --html {tmp}/page.html --row 1
inspect --html {tmp}/set
report {tmp}/set --losses {tmp}/losses.jsonl
report {tmp}/set --language zh
diff {tmp}/set {tmp}/trial
diff {tmp}/set {tmp}/trial --html
check data.jsonl --as sft
convert data.jsonl {tmp}/out.jsonl --to sharegpt
convert pairs.jsonl {tmp}/out.jsonl --to alpaca --lossy --overwrite
dedupe data.jsonl -o {tmp}/unique.jsonl --threshold 0.9 --scope within --keep 2 --longest
dedupe data.jsonl -o {tmp}/unique.jsonl --exact-only --column output --overwrite
export {tmp}/set --to jsonl --cache {tmp}/cache --workers 1
trace {tmp}/set --row 0 --split validation --json --cache {tmp}/cache
exclude {tmp}/trial --by {tmp}/exclude.jsonl --cache {tmp}/cache --workers 1
push {tmp}/set hf://me/small
sweep recipe.yaml --vary general=0.2,0.5 -o {tmp}/rung --scale 0.5 --cache {tmp}/cache --workers 1 --set seed=3
sweep recipe.yaml --vary general=0.2,0.5 -o {tmp}/rung --cache {tmp}/cache --overwrite
score data.jsonl --by dsir:data.jsonl --name likeness -o {tmp}/scores.parquet --cache {tmp}/cache --workers 1
propose recipe.yaml --runs 5 -o {tmp}/runs --scale 0.5 --cache {tmp}/cache --workers 1 --set seed=3
recommend runs.csv --target medical --keep general<=base+9 --base r0 --share general --where params=1 -o {tmp}/advice
recommend runs.csv --recipe recipe.yaml --predict runs.csv -o {tmp}/advice --json
synth synth.json -o {tmp}/replay --set seed=3 --quiet
synth synth.json -o {tmp}/replay --set seed=3 --json
schema manifest
worker {tmp}/cache --index 0/2 --idle 0
cache --cache {tmp}/cache
cache --cache {tmp}/cache --prune
"""


def invoke(line: str) -> Result:
    return CliRunner().invoke(cli, line.split(), catch_exceptions=False, obj={})


def test_every_command_runs_with_every_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe(tmp_path)
    write_jsonl(tmp_path / "data.jsonl", alpaca(["问题", "question"], 30))
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": "good", "rejected": "bad"}] * 3)
    (tmp_path / "blend.txt").write_text("1 data_text_document")
    loss = {"step": 0, "tokens": 0, "source": "general", "split": "validation", "loss": 2.5}
    write_jsonl(tmp_path / "losses.jsonl", [loss, loss | {"step": 10, "tokens": 900, "loss": 2.0}])
    write_jsonl(tmp_path / "exclude.jsonl", [{"source": "medical", "file": "medical.jsonl", "record": 1}])
    runs = [f"r{n},{n / 9},{1 - n / 9},1,{2 - n / 20},{1 + n / 30}" for n in range(10)]
    header = "run,weight:general,weight:medical,params,loss:general,loss:medical"
    (tmp_path / "runs.csv").write_text("\n".join([header, *runs]) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi", hub_stub.Hub)
    monkeypatch.setattr("datamix.jobs.worker.one_thread", lambda: None)  # of this process too
    outputs: dict[str, str] = {}
    stack = ExitStack()
    host = stack.enter_context(FakeHost().running())
    asked = {"name": "replay", "synth": "answers", "sources": {"d": {"path": "data.jsonl", "max_records": 3}}}
    endpoint = {"base_url": host.url, "model": "small"}
    (tmp_path / "synth.json").write_text(json.dumps({**asked, "endpoint": endpoint}))
    for line in CALLS.strip().splitlines():
        line = line.format(tmp=tmp_path)
        result = invoke(line)
        assert result.exit_code == 0, f"{line}\n{result.output}"
        outputs[line.replace(f"{tmp_path}/", "")] = result.stdout
    stack.close()
    assert json.loads(outputs["synth synth.json -o replay --set seed=3 --json"])["records"]["written"] == 3
    assert json.loads(outputs["plan recipe.yaml --json -o set --cache cache --set seed=7"])["exact"]
    assert "kept" in outputs["cache --cache cache --prune"]
    assert "<html" in outputs["inspect set --html"] == outputs["inspect --html set"]
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    for name in ("data.jsonl", "set/report.html"):  # what is no page of ours, and the set's own
        with pytest.raises(RecipeError):
            invoke(f"inspect {tmp_path}/set --html {tmp_path}/{name}")
    assert "rows encoded again" in outputs["verify set --inputs 0.5"]
    assert (tmp_path / "rung-general-0.2" / "manifest.json").is_file()
    assert invoke("verify set").exit_code == 0  # pruning took nothing that the set needs


def test_no_command_and_no_option_is_left_out() -> None:
    called: dict[str, set[str]] = {}
    for line in CALLS.strip().splitlines():
        name, *words = line.split()
        called.setdefault(name, set()).update(word for word in words if word.startswith("-"))
    called["build"].add("--address")  # needs Ray: tests/test_ray.py
    for name, command in cli.commands.items():
        assert name in called, name
        for option in command.params:
            if isinstance(option, click.Option) and option.name not in ("debug", "help"):
                assert set(option.opts) & called[name], f"{name} {option.opts[-1]}"


def test_debug_shows_a_traceback_and_the_same_exit_code(tmp_path: Path) -> None:
    from small import datamix

    for words, code in ((["build", tmp_path / "nothing.yaml"], 2), (["verify", tmp_path / "nothing"], 2)):
        for debug in ([], ["--debug"]):
            done = datamix(*words, *debug)
            assert done.returncode == code
            assert ("Traceback" in done.stderr) == bool(debug)


def test_a_bug_and_a_failing_machine_have_their_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from datamix.commands import cli as module
    from datamix.recipe import Recipe

    for error, code, words in (
        (ZeroDivisionError("x"), 70, "This is a bug in datamix"),
        (
            PermissionError(13, "Permission denied", "/a/b"),
            4,
            "The machine refused: Permission denied (/a/b)",
        ),
        (KeyboardInterrupt(), 130, "run the same command again"),
    ):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Recipe, "read", fail)
            with pytest.raises(SystemExit) as stopped:
                module.main(["build", str(tmp_path / "r.yaml")])
        assert stopped.value.code == code
        assert words in capsys.readouterr().err


def test_a_wrong_option_is_named_on_stderr_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    from datamix.commands import cli as module

    with pytest.raises(SystemExit) as stopped:
        module.main(["build", "recipe.yaml", "--wrkers", "2"])
    assert stopped.value.code == 2
    assert "--wrkers" in capsys.readouterr().err


def test_a_log_is_added_to_a_log_and_to_no_file_of_another_kind(tmp_path: Path) -> None:
    path, mine = recipe(tmp_path), tmp_path / "mine.jsonl"
    mine.write_text('{"text": "my corpus"}\n', encoding="utf-8")
    refused = datamix("build", path, "-o", tmp_path / "out", "--log", mine)
    assert refused.returncode == 2
    assert "is no log of a build" in refused.stderr
    assert mine.read_text(encoding="utf-8") == '{"text": "my corpus"}\n'
    log = tmp_path / "log.jsonl"
    sizes = []
    for _ in range(2):
        assert datamix("build", path, "-o", tmp_path / "out", "--overwrite", "--log", log).returncode == 0
        sizes.append(log.stat().st_size)
    assert 0 < sizes[0] < sizes[1]


def test_a_quiet_build_shows_nothing_and_logs_phases_as_json_lines(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    done = datamix("build", path, "-o", tmp_path / "out", "--quiet", "--log", tmp_path / "log.jsonl")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    begun = [entry["phase"] for entry in entries if entry.get("event") == "begin"]
    ended = [entry["phase"] for entry in entries if entry.get("event") == "end"]
    assert begun == ended
    assert {"scan", "prepare", "encode"} <= set(begun)
    times = [entry["seconds"] for entry in entries]
    assert times == sorted(times)
    again = datamix("build", path, "-o", tmp_path / "out", "--json", "--quiet")
    assert json.loads(again.stdout) == json.loads(
        (tmp_path / "out" / "manifest.json").read_text(encoding="utf-8")
    )
    broken = datamix("build", tmp_path / "none.yaml", "--quiet")
    assert broken.returncode == 2
    assert "There is no recipe" in broken.stderr


@pytest.mark.parametrize("name", list(cli.commands))
def test_every_help_ends_with_examples_that_the_command_understands(name: str) -> None:
    shown = invoke(f"{name} --help").output
    for example in EXAMPLES[name]:
        assert " ".join(example.split()) in " ".join(shown.split())
        words = shlex.split(example.split(" >")[0])
        assert words[:2] == ["datamix", name]
        cli.commands[name].make_context(name, words[2:])


def test_the_shell_completes_formats_sources_and_groups(tmp_path: Path) -> None:
    path = recipe(tmp_path)

    def completions(arguments: list[str], incomplete: str) -> list[str]:
        completer = ShellComplete(cli, {}, "datamix", "_DATAMIX_COMPLETE")
        return [item.value for item in completer.get_completions(arguments, incomplete)]

    assert completions(["export", "out", "--to"], "lla") == ["llamafactory"]
    assert completions(["export", "out", "--to", "trl"], "mega") == ["megatron"]
    assert "alpaca" in completions(["convert", "a", "b", "--to"], "al")
    assert completions(["sweep", str(path), "--vary"], "gen") == ["general="]
    assert completions(["sweep", "none.yaml", "--vary"], "gen") == []
    assert "build" in completions([], "bu")
