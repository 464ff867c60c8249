"""A plugin of pytest that notes each test as it begins and as it ends, a line of JSON each: what a process that dies
leaves of its tests."""

import json

import pytest


def pytest_addoption(parser):
    parser.addoption("--journal", metavar="FILE", help="where tests are noted as they begin and end")


def pytest_configure(config):
    config.pluginmanager.register(Journal(config.getoption("--journal")))


class Journal:
    """path: of the file, which grows."""

    def __init__(self, path):
        self._path = path

    def _note(self, **line):
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")

    @pytest.hookimpl
    def pytest_collection_finish(self, session):
        self._note(collected=len(session.items))

    @pytest.hookimpl
    def pytest_runtest_logstart(self, nodeid):
        self._note(begin=nodeid)

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self._note(end=report.nodeid, outcome=report.outcome)
