"""The table of system calls, against the headers of this machine."""

import re
import shutil
import subprocess

import pytest

from r1parallel.rewards.sandbox import system_calls

NAMED = {**system_calls.ALWAYS, **system_calls.FILES, **system_calls.CHECKED}


@pytest.mark.parametrize(("header", "column"), [("asm/unistd_64.h", 0), ("asm-generic/unistd.h", 1)])
def test_numbers_are_those_of_linux(header: str, column: int):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to read headers with")
    # A call of files is __NR3264_name in the second header: its name depends on the size of a word.
    read = subprocess.run(
        ["g++", "-E", "-dM", "-x", "c", "-"],
        input=f"#include <bits/wordsize.h>\n#define __BITS_PER_LONG __WORDSIZE\n"
        f"#define __ARCH_WANT_RENAMEAT\n#define __ARCH_WANT_NEW_STAT\n#define __ARCH_WANT_SET_GET_RLIMIT\n"
        f"#include <{header}>\n",
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    if read.returncode:
        pytest.skip(f"no {header} on this machine")
    found = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)$", read.stdout, re.M)}
    named = {"fstatat": "newfstatat"} if column else {}
    found = {named.get(name, name): number for name, number in found.items()}
    wanted = {name: pair[column] for name, pair in NAMED.items() if pair[column] is not None}
    assert {name: found.get(name) for name in wanted} == wanted


def test_each_name_is_in_one_table():
    assert len(NAMED) == len(system_calls.ALWAYS) + len(system_calls.FILES) + len(system_calls.CHECKED)


@pytest.mark.parametrize("machine", system_calls.AUDIT_ARCH)
def test_what_the_child_is_told(machine: str):
    told = system_calls.numbers(machine)
    assert told["machine"] == machine
    assert {"audit_arch", "always", "files", "ioctl", "fcntl", "prlimit64"} < told.keys()
    numbers = [*told["always"], *told["files"], told["ioctl"], told["fcntl"], told["prlimit64"]]
    assert len(set(numbers)) == len(numbers)
    assert None not in numbers
