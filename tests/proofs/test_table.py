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
