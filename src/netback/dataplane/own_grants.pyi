# SPDX-License-Identifier: Apache-2.0
class OwnGrants:
    """Grants of the domain `domid`, this one, to itself, from an open /dev/xen/gntalloc, which it duplicates."""

    def __init__(self, device: int, domid: int) -> None: ...
