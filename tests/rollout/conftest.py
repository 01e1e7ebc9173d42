import pytest

from lit_rlhf.models import PolicyModel, load_causal_lm
from tests.models.examples import save_policy


@pytest.fixture(scope="session")
def policies(tmp_path_factory):
    """Return a function from an architecture to a lively policy as a phase loads it, made once."""
    loaded = {}

    def policy(architecture="llama"):
        if architecture not in loaded:
            folder = save_policy(tmp_path_factory.mktemp(architecture), architecture)
            loaded[architecture] = PolicyModel(load_causal_lm(str(folder)).eval())
        return loaded[architecture]

    return policy
