import json

from generated import written
from robustness.fault_table import CATEGORIES
from robustness.robustness_page import PAGE, SUMMARIES, tables


def test_the_table_of_the_page_is_that_of_the_summary() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page, tables()) == page, "a summary has changed: run `make page`"


def test_what_the_page_claims_of_faults_is_in_the_summary() -> None:
    faults = json.loads((SUMMARIES / "faults.json").read_text(encoding="utf-8"))
    assert faults["faults"] >= 200
    assert faults["problems"] == dict.fromkeys(CATEGORIES, 0)
