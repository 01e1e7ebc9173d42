import pytest

from tests.models.examples import save_policy


@pytest.fixture(scope="session")
def policy_folders(tmp_path_factory):
    """Return a function from an architecture to the folder of a lively policy, written once."""
    folders = {}

    def folder(architecture="llama"):
        if architecture not in folders:
            target = tmp_path_factory.mktemp(architecture)
            folders[architecture] = save_policy(target, architecture)
        return folders[architecture]

    return folder
