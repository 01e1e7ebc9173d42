import json

import pytest

from tests.proofs.table import Claim, page, read_claims, write_claims


def test_fragments_become_one_table(tmp_path):
    write_claims("b", [Claim("processes agree", 4, 4, 2.5e-7, "gloo")], tmp_path)
    write_claims("a", [Claim("kills survive", 20, 19, 0.0), Claim("a|b", 1, 1)], tmp_path)
    rows = page(read_claims(tmp_path)).splitlines()[-3:]
    assert rows == [
        "| kills survive | 20 | **19** | 0 |  |",
        "| a\\|b | 1 | 1 |  |  |",
        "| processes agree | 4 | 4 | 2.5e-07 | gloo |",
    ]


@pytest.mark.parametrize("change", [{"held": 3}, {"made": 0, "held": 0}, {"helt": 1}])
def test_a_fragment_that_makes_no_sense_is_refused_by_name(tmp_path, change):
    path = write_claims("a", [Claim("kills survive", 2, 2)], tmp_path)
    path.write_text(json.dumps([json.loads(path.read_text())[0] | change]))
    with pytest.raises(ValueError, match=r"a\.json"):
        read_claims(tmp_path)
