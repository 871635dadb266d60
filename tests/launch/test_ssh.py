"""What `perennial launch ssh` reads, checks and would execute."""

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from data_shards.settings import InputError
from launch.clusters.ssh import Host, Launch, read_hosts
from launch.clusters.ssh_host import check_same, facts_of
from launch.config.cluster import ClusterSettings

HOSTS = [Host("me@head", "10.0.0.1"), Host("second", cpus=4, gpus=2)]
VALUES = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("xy"), min_size=4, max_size=4)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hosts"
    path.write_text(text)
    return path


def test_a_hosts_file_is_read(tmp_path):
    text = "# mine\n\nme@head address=10.0.0.1\nsecond  cpus=4 gpus=2 # with GPUs\n"
    assert read_hosts(written(tmp_path, text)) == HOSTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must name hosts"),
        ("a\na\n", "each of them once"),
        ("a\nb cpu=4\n", r"line 2 of .*'cpu=4' is not understood: write NAME \[address=IP\]"),
        ("a cpus=many\n", "line 1 of .*'cpus=many' is not understood"),
        ("-oProxyCommand=x\n", "is not understood"),
        ("a;reboot\n", "is not understood"),
    ],
)
def test_a_bad_hosts_file_is_explained(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_hosts(written(tmp_path, text))


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_every_difference_to_the_first_host_is_told(facts):
    lines = check_same([(f"host-{n}", values) for n, values in enumerate(facts)])
    expected = sum(found[key] != facts[0][key] for found in facts[1:] for key in facts[0])
    assert len(lines) == expected


def test_facts_name_code_lock_and_packages(tmp_path):
    config = written(tmp_path, "a")
    facts = facts_of(config)
    assert facts["torch"].startswith("2.")
    assert facts["requirements.lock"] != "missing"
    assert {"ray", "deepspeed", "numpy"} <= facts.keys()
    config.write_text("b")
    assert check_same([("here", facts), ("there", facts_of(config))]) == [
        f"there has {config} {facts_of(config)[str(config)]}, here has {facts[str(config)]}"
    ]


def test_commands_hold_no_secret_and_quote_what_they_are_given():
    launch = Launch(HOSTS, "/a folder", "/venv/bin/python", 6379, ("-F", "my config"))
    lines = list(launch.commands(["configs/demo.yaml", "seeds=[0, 1]"]))
    facts, nodes, driver = lines[:2], lines[3:5], lines[5]
    assert all("launch.clusters.ssh_host facts configs/demo.yaml" in line for line in facts)
    assert "node --port=6379 --address=10.0.0.1" in nodes[0]
    assert "node --port=6379 --head=10.0.0.1 --cpus=4 --gpus=2" in nodes[1]
    assert "cluster.address=10.0.0.1:6379" in driver
    assert "seeds=[0, 1]" in driver
    assert not any("TOKEN" in line for line in lines)
    assert all("BatchMode=yes" in line and "-F 'my config'" in line for line in facts + nodes)


def test_an_ipv6_address_goes_in_brackets():
    hosts = [Host("a", "fd00::1"), Host("user@b")]
    (*_, driver) = Launch(hosts, "/code", "python", 6379).commands(["demo.yaml"])
    (address,) = re.findall(r"cluster\.address=(\S+)", driver.replace("'", "").replace('"', ""))
    assert ClusterSettings(address=address).address == "[fd00::1]:6379"


SSH = """#!/bin/sh
# ssh, whose hosts say that Ray runs when the first does, or all others have begun
while [ "$1" != -- ]; do shift; done
host=$2
case $3 in
    *" facts "*) echo '{"c.yaml": "x"}'; exit ;;
    *" driver "*) exit 7 ;;
esac
touch begun-$host
[ $host = a ] || while [ ! -e begun-b ] || [ ! -e begun-c ]; do sleep 0.01; done
echo ready
cat > told-$host  # until the launcher hangs up
touch ended-$host
[ $host = a ] || while [ ! -e ended-b ] || [ ! -e ended-c ]; do sleep 0.01; done
"""


def test_other_hosts_begin_and_end_at_once(tmp_path, monkeypatch):
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tmp_path)
    launch = Launch([Host("a"), Host("b"), Host("c")], "/code", "python", 6379)
    console = Console(file=io.StringIO())
    assert launch.run(["c.yaml"], console) == 7
    assert [line.split()[1] for line in console.file.getvalue().splitlines()] == ["a:", "b:", "c:"]
    assert {path.name for path in tmp_path.glob("ended-*")} == {"ended-a", "ended-b", "ended-c"}
    (token,) = {path.read_text() for path in tmp_path.glob("told-*")}
    assert len(token.strip()) == 64
