from lit_rlhf.feedback.agreement import Estimate, Undefined
from lit_rlhf.feedback.agreement_report import read_agreement
from lit_rlhf.feedback.judgments import JudgedTask, Judgment


def test_counts_come_from_one_query_on_both_databases(store):
    alike = (Judgment("judged", (1, 2), labeler="ana"), Judgment("judged", (1, 2), labeler="ben"))
    apart = (alike[0], Judgment("both_bad", labeler="ben"))
    rated = (Judgment("judged", ratings=(3.0, None), labeler="ana"),)
    tasks = [("p", alike), ("q", apart), ("r", rated), ("s", (Judgment("skip", labeler="ana"),))]
    store.add_tasks(JudgedTask(prompt, ("a", "b"), said, None, {}) for prompt, said in tasks)
    with store.database.reading() as connection:
        found = {(one.judged, one.measure): one for one in read_agreement(connection)}
    percent = found["pairs", "percent agreement"]
    assert isinstance(percent.value, Estimate)
    assert (percent.value.value, percent.num_units) == (0.5, 2)
    unjudged = found["ratings", "percent agreement"]
    assert isinstance(unjudged.value, Undefined)
    assert unjudged.num_units == 0
