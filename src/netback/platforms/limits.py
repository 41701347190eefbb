# SPDX-License-Identifier: Apache-2.0
"""What this process may ask of the kernel."""

import resource


def allow_descriptors() -> None:
    """Raise the soft limit of open files to the hard one: a thousand domains or vifs take some five each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
