"""The pages about cleaning name every step, and their recipe is one."""

import re
from pathlib import Path

import pytest
import yaml

from datamix.clean import STEPS
from datamix.pipeline.translate import step_options
from datamix.recipe import CleanStep

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["cleaning.md", "cleaning.zh.md"])
def test_the_page_has_a_row_for_every_step_and_steps_that_work(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert set(re.findall(r"^\| (\w+) \|", text, re.MULTILINE)) >= set(STEPS)
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    for entry in yaml.safe_load(block[1])["clean"]:
        step_options(CleanStep.model_validate(entry))
