import platform

import pytest

from r1parallel.cpu_backend import wheel
from r1parallel.cpu_backend.wheel import TESTED, UNTESTED, find_wheel
from r1parallel.errors import UserError


@pytest.fixture(autouse=True)
def no_override(monkeypatch):
    monkeypatch.delenv(UNTESTED, raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def test_the_installed_wheel_is_a_tested_one():
    found = find_wheel()
    assert found.sites == TESTED[found.version, "x86_64"]
    assert (found.folder / "lib" / "libmindspore_frontend.so").is_file()


def test_another_version_is_refused_in_one_line_that_says_how_to_try(monkeypatch):
    monkeypatch.setattr(wheel, "version", lambda name: "3.1.4")
    with pytest.raises(UserError, match=r"mindspore 3\.1\.4 x86_64: .* tested on 2\.9\.0 x86_64") as error:
        find_wheel()
    assert f"{UNTESTED}=1" in str(error.value)
    assert "\n" not in str(error.value)


def test_another_machine_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(UserError, match="aarch64"):
        find_wheel()


@pytest.mark.parametrize(("value", "allowed"), [("1", True), ("0", False), ("", False)])
def test_only_a_one_overrides(monkeypatch, value, allowed):
    monkeypatch.setattr(wheel, "version", lambda name: "3.1.4")
    monkeypatch.setenv(UNTESTED, value)
    if allowed:
        assert (find_wheel().version, find_wheel().sites) == ("3.1.4", None)
    else:
        with pytest.raises(UserError):
            find_wheel()
