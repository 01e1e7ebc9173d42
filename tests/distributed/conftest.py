import pytest

from tests.support.phase_runs import write_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_inputs(folder)
    return folder
