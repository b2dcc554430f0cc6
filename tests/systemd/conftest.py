"""The machine that all tests of this folder share, and its journal for those that fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from container import Container


@pytest.fixture(scope="session")
def machine() -> Iterator[Container]:
    """A machine after the three commands of the README, with two users, one of them in the group."""
    container = Container()
    try:
        for user in ("alice", "mallory"):
            container.run("useradd", "--create-home", user)
        container.run("systemd-sysusers")
        container.run("systemd-tmpfiles", "--create")
        container.run("systemctl", "daemon-reload")
        container.run("systemctl", "enable", "--now", "reeld.socket")
        container.run("usermod", "--append", "--groups", "reeld", "alice")
        yield container
    finally:
        container.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Adds the machine's journal to the report of a test that failed."""
    report = yield
    container = getattr(item, "funcargs", {}).get("machine")
    if report.failed and container is not None:
        report.sections.append(("journal of the machine", container.journal()))
    return report
