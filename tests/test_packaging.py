# SPDX-License-Identifier: Apache-2.0
"""The unit as systemd reads it, and what Debian's package repeats of the project. `make deb` tries the package."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

import netback
from netback.abi.xen import DEVICES
from netback.daemon.auto_attach import NET
from netback.daemon.config import NO_KEYS, Config, DeviceRule, load_config, parse_config
from netback.daemon.systemd.unit import HOTPLUG, UNIT, hidden, lookup, needed, quote, unit
from netback.errors import ConfigError
from netback.lab import image, package
from netback.web import needs_extra

NAMES = (
    "plain",
    "my tools 50%",
    "%n %h %%",
    "$HOME ${PATH} $$",
    'it\'s "quoted"',
    "back\\slash\\x41\\n",
    "semi;colon # & | * ? [a] {b}",
    "tab\tand\nline",
    "gäst €",
    "-dash @at !bang",
    "'",
)

ROOT = Path(__file__).parents[1]
DEBIAN = ROOT / "debian"
OTHER_NAMES = {"Cython": "cython3", "setuptools": "python3-setuptools"}

WORD = r""""((?:[^"\\]|\\.)*)"|'([^']*)'|(\S+)"""


def verify(directory: Path, text: str) -> tuple[int, str]:
    """systemd's verdict on a unit: 0 if it can start; and its messages about this unit."""
    path = directory / "netback.service"
    path.write_text(text.replace("FileDescriptorStorePreserve=yes\n", ""))  # systemd 252 does not know it yet
    seen = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )
    about_ours = [line for line in seen.stderr.splitlines() if "netback.service" in line]
    return seen.returncode, "\n".join(about_ours)


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    assert verify(tmp_path, unit("/bin/true")) == (0, "")


def test_systemd_understands_the_drop_in(tmp_path: Path) -> None:
    """It is read with the unit, as a wrong line in it shows."""
    drop_in = tmp_path / "netback.service.d" / "hotplug.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(f"{HOTPLUG.read_text()}Nonsense=1\n")
    assert "hotplug.conf" in verify(tmp_path, unit("/bin/true"))[1]
    drop_in.write_text(HOTPLUG.read_text())
    assert verify(tmp_path, unit("/bin/true")) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_a_program_wherever_it_is(tmp_path: Path, name: str) -> None:
    """systemd looks for exactly this file, and reports it if it is missing; it does not look for an argument."""
    program = tmp_path / name / "netback"
    program.parent.mkdir()
    text = unit(str(program))
    assert verify(tmp_path, text)[0] != 0 or "/bin/sh" in text
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert verify(tmp_path, text) == (0, "")
    assert "\n[Service]\n" in text


@pytest.mark.parametrize("name", NAMES)
def test_the_program_runs(tmp_path: Path, name: str) -> None:
    """With words and escapes as systemd.service(5) has them, and "%%" for a percent sign."""
    program = tmp_path / name / "netback"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s " "$@"\n')
    program.chmod(0o755)
    (line,) = [line for line in unit(str(program)).splitlines() if line.startswith("ExecStart=")]
    words = [
        re.sub(r"\\(x[0-9a-f]{2}|.)", unescape, (double or single or plain).replace("%%", "%"))
        for double, single, plain in re.findall(WORD, line.partition("=")[2])
    ]
    words[0] = words[0].removeprefix(":")
    seen = subprocess.run(words, capture_output=True, text=True, check=True)
    assert seen.stdout == "run --platform xen "


def unescape(match: re.Match[str]) -> str:
    code = match.group(1)
    return chr(int(code[1:], 16)) if len(code) > 1 else code


def test_a_plain_path_stays_as_it_is() -> None:
    assert quote("/opt/netback-0.1/bin/netback") == "/opt/netback-0.1/bin/netback"
    assert quote("/opt/a $b/50%") == '":/opt/a $b/50%%"'


@pytest.mark.parametrize(
    ("program", "directory", "setting"),
    [
        ("/root/venv/bin/netback", "/root", "ProtectHome=yes"),
        ("/home/x/netback", "/home", "ProtectHome=yes"),
        ("/run/user/1000/netback", "/run/user", "ProtectHome=yes"),
        ("/tmp/netback", "/tmp", "PrivateTmp=yes"),
        ("/var/tmp/netback", "/var/tmp", "PrivateTmp=yes"),
        ("/opt/../tmp/netback", "/tmp", "PrivateTmp=yes"),
    ],
)
def test_what_the_unit_cannot_see(program: str, directory: str, setting: str) -> None:
    assert hidden(["/usr/bin/env", program]) == {Path(directory): (Path(program), setting)}


def test_what_the_unit_can_see() -> None:
    assert hidden(["/opt/netback/bin/netback", "/usr/bin/python3", "/rooter", "/tmpfs"]) == {}


def test_a_lookup_goes_by_every_link(tmp_path: Path) -> None:
    """As with uv, whose virtual environments lead to a Python in a home directory through two links."""
    base, venv = tmp_path / "base", tmp_path / "venv"
    (base / "bin").mkdir(parents=True)
    (base / "bin" / "python3.13").touch()
    (base / "bin" / "python3").symlink_to("python3.13")
    venv.mkdir()
    (venv / "python").symlink_to("../base/./bin/python3")
    visited = list(lookup(venv / "python"))
    for path in (venv / "python", base / "bin" / "python3", base / "bin" / "python3.13"):
        assert path in visited
    (venv / "loop").symlink_to("loop")
    assert len(list(lookup(venv / "loop"))) < 100


def test_what_the_service_needs(tmp_path: Path) -> None:
    program = tmp_path / "netback"
    program.write_text("#!/opt/odd/python -I\n")
    found = list(needed(str(program)))
    assert {str(program), "/opt/odd/python", sys.executable, sys.base_prefix} <= set(found)
    assert any(path.endswith("msgspec/__init__.py") for path in found)


def test_a_start_without_the_modules_is_an_error_in_a_xen_domain_alone() -> None:
    """A failed Assert fails `systemctl start`; a failed Condition skips the start without a word."""
    found = re.findall(r"^(Assert|Condition)PathExists=(.+)$", UNIT.read_text(), re.MULTILINE)
    assert found == [
        ("Condition", str(DEVICES)),
        *(("Assert", f"{DEVICES}/{name}") for name in ("evtchn", "gntdev")),
    ]


def test_it_may_do_little() -> None:
    seen = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert seen.returncode == 0, seen.stdout[-400:] + seen.stderr


def relations(stanza: str, field: str) -> dict[str, set[str]]:
    """A field of debian/control: each package with its bounds, as in {"cython3": {">= 3.0.10", "<< 4"}}."""
    (text,) = re.findall(rf"^{field}:((?:.*\n)(?: .*\n)*)", stanza, re.MULTILINE)
    found: dict[str, set[str]] = {}
    for name, bound in re.findall(r"([a-z0-9][a-z0-9+.-]+)(?: \((.+?)\))?(?:,|\s*\Z)", text):
        found.setdefault(name, set()).update([bound] if bound else [])
    return found


def debian(requirement: str) -> tuple[str, set[str]]:
    """A requirement of pyproject.toml as Debian's package and bounds."""
    name, bounds = re.fullmatch(r"([A-Za-z0-9-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
    return (
        OTHER_NAMES.get(name, f"python3-{name}"),
        {
            re.sub(r"^([<>]=?)", lambda sign: {"<": "<<"}.get(sign[1], sign[1]) + " ", bound)
            for bound in bounds.split(",")
        },
    )


def test_the_debian_package_needs_what_the_project_needs() -> None:
    """dh_python3 makes its Depends of the project's own list; the build needs those to print the manual."""
    source, binary = (DEBIAN / "control").read_text().split("\n\n", 1)
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = pyproject["build-system"]["requires"] + pyproject["project"]["dependencies"]
    named = relations(f"{source}\n", "Build-Depends")
    assert dict(map(debian, wanted)) == {
        name: bounds for name, bounds in named.items() if bounds and name != "debhelper-compat"
    }
    suggested = relations(binary, "Suggests")
    web = dict(map(debian, pyproject["project"]["optional-dependencies"]["web"]))
    assert {name: suggested.get(name) for name in web} == web
    assert "${python3:Depends}" in binary


def test_a_missing_page_names_packages_of_pip_and_of_debian() -> None:
    """pip refuses to install into Debian's Python (PEP 668)."""
    with (
        pytest.raises(ConfigError, match=r"^uvicorn is missing: pip install 'netback\[web\]'") as raised,
        needs_extra(),
    ):
        raise ImportError(name="uvicorn")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for requirement in pyproject["project"]["optional-dependencies"]["web"]:
        assert debian(requirement)[0] in str(raised.value)


def test_the_lab_has_what_the_debian_package_needs() -> None:
    """dom0 installs the package by dpkg alone; what builds it is installed by names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {debian(one)[0] for one in project["dependencies"]} <= set(image.PACKAGES)
    control = (DEBIAN / "control").read_text()
    source, binary = control.split("\n\n", 1)
    assert {name for name in relations(binary, "Depends") if "$" not in name} <= set(image.PACKAGES)
    assert set(package.build_depends(control)) == set(relations(f"{source}\n", "Build-Depends"))


def test_the_debian_package_has_the_projects_version() -> None:
    newest = (DEBIAN / "changelog").read_text().splitlines()[0]
    assert newest.startswith(f"netback ({netback.__version__}) ")


def test_the_default_configuration_changes_nothing(tmp_path: Path) -> None:
    main = tmp_path / "netback.toml"
    main.write_text((DEBIAN / "netback.toml").read_text())
    nothing = load_config(tmp_path / "none.toml", optional=True)
    assert load_config(main) == msgspec.structs.replace(nothing, files=(str(main),))


def test_the_default_configuration_has_each_key_with_its_default() -> None:
    """A key without "#" is what netback does without the key; where that depends on the machine, the text says so."""
    text = re.sub(r"^#(?=[a-z_]+ = |\[\[)", "", (DEBIAN / "netback.toml").read_text(), flags=re.MULTILINE)
    table = tomllib.loads(text)
    assert [*table] == [name for name in Config.__struct_fields__ if name not in NO_KEYS]
    assert set(table["device"][0]) == set(DeviceRule.__struct_fields__) - NO_KEYS
    found, default = parse_config(text), Config(net=NET)
    for name in table:
        if name != "device" and getattr(default, name) is not None:
            assert getattr(found, name) == getattr(default, name), name
