"""The emulated device, compiled once per session."""

from __future__ import annotations

import pytest

from tests.cuda_emulator.emulator import Emulator


@pytest.fixture(scope="session")
def emulator():
    device = Emulator()
    yield device
    device.close()
