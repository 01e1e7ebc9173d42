import pytest

from benchmarks import parity, parity_ppo


@pytest.mark.slow
@pytest.mark.skipif(not parity.PEER.exists(), reason="needs `make .venv-trl/.installed`")
@pytest.mark.parametrize(
    ("compare", "names"),
    [(parity.compare, parity.LOSSES), (parity_ppo.compare, parity_ppo.CASES)],
    ids=["preference losses", "PPO"],
)
def test_objectives_are_those_of_trl(tmp_path, compare, names):
    found = compare(tmp_path)
    assert found.keys() == names.keys()
    wrong = {name: row for name, row in found.items() if max(row[1:]) > parity.LIMIT}
    assert not wrong
