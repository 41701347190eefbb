# SPDX-License-Identifier: Apache-2.0
"""Networks that are Python objects, by the spec that names them, and the device that each of them serves.

Knows devices by their names; a network's own kind does not matter here.
"""

from collections.abc import Mapping

from netback.errors import PeerError
from netback.net.base import Network, NetworkFactory


class ObjectNetworks:
    """Each spec names a network, which serves one device at a time and stays its owner's, or a factory.

    A factory makes a network for each device, which is then closed and removed like one of any other spec.
    """

    def __init__(self, networks: Mapping[str, Network | NetworkFactory]) -> None:
        self._networks = networks
        self._users: dict[int, str] = {}
        """The device that each network serves, by the network's identity: two specs may name one network."""

    def __contains__(self, spec: str) -> bool:
        return spec in self._networks

    def open(self, spec: str, device: str) -> Network:
        """The network of `device`, as in "vif3.0". KeyError: no such spec. PeerError: it serves another device now."""
        network = self._networks[spec]
        if callable(network):
            return network(device)
        user = self._users.setdefault(id(network), device)
        if user != device:
            raise PeerError(
                f"network {spec}: {user} uses it; give a factory, which makes one for each device"
            )
        return network

    def give_back(self, network: Network) -> bool:
        """The device that used the network is done with it. False: the device's to close, no object of these specs."""
        return self._users.pop(id(network), None) is not None
