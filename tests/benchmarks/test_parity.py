import pytest

from benchmarks import parity


@pytest.mark.slow
@pytest.mark.skipif(not parity.PEER.exists(), reason="needs `make .venv-trl/.installed`")
def test_losses_and_gradients_are_trls(tmp_path):
    found = parity.compare(tmp_path)
    assert found.keys() == parity.LOSSES.keys()
    wrong = {name: row for name, row in found.items() if max(row[1:]) > parity.LIMIT}
    assert wrong == {}
