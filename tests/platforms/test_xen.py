# SPDX-License-Identifier: Apache-2.0
"""What can be tested of real Xen's platform without Xen: Linux's headers have the same numbers, errors give the
remedy.
"""

import subprocess
from pathlib import Path

import pytest

from netback.cli.target import PlatformName, Target
from netback.errors import ConfigError, PlatformError
from netback.platforms.xen import XenDomain, devices, domain, events, gntalloc, platform

NUMBERS = {
    "IOCTL_GNTALLOC_ALLOC_GREF": gntalloc._ALLOC_GREF,
    "IOCTL_GNTALLOC_DEALLOC_GREF": gntalloc._DEALLOC_GREF,
    "GNTALLOC_FLAG_WRITABLE": gntalloc._WRITABLE,
    "IOCTL_EVTCHN_BIND_INTERDOMAIN": events._BIND_INTERDOMAIN,
    "IOCTL_EVTCHN_BIND_UNBOUND_PORT": events._BIND_UNBOUND,
    "IOCTL_EVTCHN_UNBIND": events._UNBIND,
    "IOCTL_EVTCHN_NOTIFY": 0x00044504,
    "IOCTL_GNTDEV_MAP_GRANT_REF": platform._MAP_GRANT_REF,
    "IOCTL_GNTDEV_UNMAP_GRANT_REF": platform._UNMAP_GRANT_REF,
    "IOCTL_GNTDEV_GRANT_COPY": 0x00104708,
    "offsetof(struct ioctl_gntalloc_alloc_gref, flags)": 2,
    "offsetof(struct ioctl_gntalloc_alloc_gref, count)": 4,
    "offsetof(struct ioctl_gntalloc_alloc_gref, index)": 8,
    "offsetof(struct ioctl_gntalloc_alloc_gref, gref_ids)": 16,
    "offsetof(struct ioctl_gntalloc_dealloc_gref, count)": 8,
    "sizeof(struct ioctl_gntalloc_dealloc_gref)": 16,
    "offsetof(struct ioctl_gntdev_map_grant_ref, index)": 8,
    "offsetof(struct ioctl_gntdev_map_grant_ref, refs)": 16,
}
"""The name in Linux's headers, and our value."""


def test_numbers_and_layouts_are_those_of_linux_s_headers(tmp_path: Path) -> None:
    source = tmp_path / "numbers.c"
    headers = ("xen/evtchn.h", "xen/gntdev.h", "xen/gntalloc.h")
    lines = ["#include <stddef.h>", "#include <stdint.h>", "#include <linux/ioctl.h>"]
    lines += [
        "typedef uint16_t domid_t;",
        "typedef uint32_t grant_ref_t;",
    ]  # Xen's own, which Linux's headers use
    lines += [f"#include <{header}>" for header in headers]
    lines += [f'_Static_assert(({name}) == {value}, "{name}");' for name, value in NUMBERS.items()]
    source.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        ["gcc", "-std=gnu11", "-fsyntax-only", str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_page_left_says_whose_limit_it_is_and_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limit = tmp_path / "limit"
    limit.write_text("1024\n")
    monkeypatch.setattr(gntalloc, "_LIMIT", limit)
    error = gntalloc._explained(PlatformError("cannot grant 256 pages to domain 0: No space left", "ENOSPC"))
    assert error.errno == "ENOSPC"
    assert "limit is 1024 pages" in str(error)
    assert str(limit) in str(error)
    other = PlatformError("cannot grant 1 pages to domain 0: Cannot allocate memory", "ENOMEM")
    assert gntalloc._explained(other) is other


def test_a_device_that_linux_s_netfront_drives_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(domain, "_NETFRONT", tmp_path)
    (tmp_path / "vif-0").mkdir()
    guest = XenDomain.__new__(XenDomain)
    with pytest.raises(ConfigError, match="modprobe -r xen-netfront"):
        guest.claim("device/vif/0")
    guest.claim("device/vif/1")


def test_no_xen_here_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "DEVICES", tmp_path)
    monkeypatch.setenv("XENSTORED_PATH", str(tmp_path / "none"))
    with pytest.raises(PlatformError, match="cannot connect"):
        Target(PlatformName.XEN, tmp_path).open_domain()


def test_a_real_guest_is_not_asked_who_it_is() -> None:
    with pytest.raises(ConfigError, match="--domid and --name are for an emulated Xen"):
        Target(PlatformName.XEN, Path()).open_domain(domid=3)
