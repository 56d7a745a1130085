"""The versions that a platform preinstalls; `scripts/test.py --stack` says which stack this is."""

import os
import sys
from importlib.metadata import version

import environment
import pytest
from packaging.requirements import Requirement

STACK = os.environ.get("SKINLESION_STACK", "newest")


@pytest.mark.skipif(STACK == "newest", reason="of the stacks that a platform preinstalls")
def test_our_requirements_left_what_was_preinstalled_as_it_was():
    for pin in map(Requirement, environment.STACKS[STACK].preinstalled):
        assert f"=={version(pin.name)}" == str(pin.specifier), pin.name
    assert sys.version.startswith(environment.STACKS[STACK].python)
