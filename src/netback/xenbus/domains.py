# SPDX-License-Identifier: Apache-2.0
"""Domains by domid or name, and what the store says of them."""

import asyncio
from contextlib import suppress

from netback.abi.xen import DOMID_FIRST_RESERVED
from netback.errors import ConfigError
from netback.xenbus.names import decimal, home
from netback.xenstore.aio import Store, StoreError

_JOIN_SECONDS = 3.0
_INCOMING = "--incoming"
"""What `xl migrate` appends to the name of a guest until its memory has arrived. Its devices are made before that, and
it is renamed before it runs.
"""


async def own_domid(store: Store) -> int:
    """The domid that this connection's privilege belongs to. A store without the node `domid` is domain 0's."""
    return decimal(await store.read_or("domid") or "0", DOMID_FIRST_RESERVED) or 0


async def await_domain(store: Store, domain: str) -> int:
    """The domid, once that domain has joined: a guest that was just started may need a moment.

    ConfigError: after 3 seconds no such domain exists, or more than one does.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_JOIN_SECONDS), await store.watch("@introduceDomain") as introduced:
            async for _ in introduced:
                with suppress(ConfigError):
                    domid = await find_domain(store, domain)
                    if await store.introduced(domid):
                        return domid
    return await find_domain(store, domain)


async def find_domain(store: Store, domain: str) -> int:
    """A domid, or the domid of the only domain with that name. ConfigError: no domain or several domains
    match.
    """
    domid = decimal(domain, DOMID_FIRST_RESERVED)
    if domid is not None:
        return domid
    known = [text for text in await store.directory("/local/domain") if text.isdecimal()]
    names = await asyncio.gather(*(_name(store, int(text)) for text in known))
    found = [text for text, name in zip(known, names, strict=True) if name == domain]
    if len(found) != 1:
        raise ConfigError(
            f"{len(found)} domains are named {domain!r}" if found else f"no domain is named {domain!r}"
        )
    return int(found[0])


async def identity(store: Store, domid: int) -> tuple[str | None, str | None]:
    """A domain's name and UUID; None for what it does not have, and both in a driver domain, which may not read them. A
    domain that arrives by migration has the name that it will have.
    """
    try:
        name, machine = await asyncio.gather(
            *(store.read_or(f"{home(domid)}/{node}") for node in ("name", "vm"))
        )
    except StoreError as error:
        if error.errno != "EACCES":
            raise
        return None, None
    return name and name.removesuffix(_INCOMING), machine and machine.rpartition("/")[2]


async def _name(store: Store, domid: int) -> str | None:
    """A domain's name; None if it may not be read: libxl does not let a driver domain read guests' names."""
    try:
        return await store.read_or(f"{home(domid)}/name")
    except StoreError as error:
        if error.errno == "EIO":
            raise
        return None
