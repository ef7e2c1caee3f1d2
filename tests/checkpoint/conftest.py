"""Trunks that the tests of checkpoints share."""

import pytest
from trunks import resnet


@pytest.fixture(scope="session")
def resnet18():
    return resnet(18)


@pytest.fixture(scope="session")
def resnet50():
    return resnet(50)
