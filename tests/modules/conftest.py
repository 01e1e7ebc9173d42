import pytest

from tests.models.examples import save_policy


@pytest.fixture(scope="session")
def policy(tmp_path_factory):
    """Return the folder of a random policy whose every weight matters."""
    return str(save_policy(tmp_path_factory.mktemp("policy")))


@pytest.fixture(scope="session")
def talker(tmp_path_factory):
    """Return the folder of a policy whose responses end after different lengths, or not at all."""
    folder = tmp_path_factory.mktemp("talker")
    return str(save_policy(folder, eos_token_id=list(range(2, 9))))
