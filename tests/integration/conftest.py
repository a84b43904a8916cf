import pytest

from .published import Published


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Stand-ins for what the Hub holds."""
    return Published(tmp_path_factory.mktemp("published"))
