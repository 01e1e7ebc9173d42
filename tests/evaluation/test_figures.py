import math

from lit_rlhf.evaluation.bootstrap import Estimate
from lit_rlhf.evaluation.figures import Figure, sections


def figure(value=0.615, low=0.52, high=0.701, unit="%", **changes):
    whole = Figure("Against", "a/b", "win_rate", Estimate(value, low, high, 40), unit, "sft", "rm")
    return whole._replace(**changes)


def test_shares_are_shown_in_percent_and_kept_as_shares():
    assert figure().shown() == ("61.5 %", "52.0 to 70.1")
    assert figure().as_json()["value"] == 0.615
    assert figure().as_json()["n"] == 40
    for one in (figure(), figure(against="", unit="")):
        assert Figure.from_json(one.as_json()) == one


def test_numbers_of_all_sizes():
    assert figure(0.0, 0.0, 1.0).shown() == ("0.0 %", "0.0 to 100.0")
    assert figure(0.0, -0.5, 2.25, "").shown() == ("0.000", "-0.500 to 2.250")
    assert figure(1234.5, 1000, 2000, "tokens").shown() == ("1234.5 tokens", "1000.0 to 2000.0")
    assert figure(0.00012, 0.0, 0.001, "").shown() == ("1.20e-04", "0.000 to 1.00e-03")


def test_what_is_no_number_is_not_made_one():
    one = figure(2.0, math.nan, math.nan, "")
    assert one.shown() == ("2.000", "-")
    assert (one.as_json()["value"], one.as_json()["low"]) == (2.0, None)
    assert Figure.from_json(one.as_json()).shown() == one.shown()
    assert figure(math.nan, math.nan, math.nan).shown() == ("-", "-")


def test_names_for_loggers_have_one_part_for_each_field():
    assert figure().name == "eval/a.b/win_rate/sft/rm"
    assert figure(against="", judge="").name == "eval/a.b/win_rate"


def test_sections_keep_their_order():
    rows = [figure(), figure(section="B"), figure(subject="c")]
    assert {name: len(part) for name, part in sections(rows).items()} == {"Against": 2, "B": 1}
