# SPDX-License-Identifier: Apache-2.0
"""Networks that are Python objects, by the spec that names them, and the device that each one serves."""

from collections.abc import Mapping

from netback.errors import PeerError
from netback.net.base import Network, NetworkFactory


class ObjectNetworks:
    """Each spec names either a network, which serves one device at a time and is closed by its owner, or a factory.

    A factory makes a network for each device; that network is closed and removed like one of any other spec.
    """

    def __init__(self, networks: Mapping[str, Network | NetworkFactory]) -> None:
        self._networks = networks
        self._users: dict[int, str] = {}
        """The device that each network serves, by the network's identity: two specs may name the same network."""

    def __contains__(self, spec: str) -> bool:
        return spec in self._networks

    def open(self, spec: str, device: str) -> Network:
        """Reserve the network for `device`, as in "vif3.0". KeyError: no such spec. PeerError: another device uses
        it.
        """
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
        """Release a network after its device's end. False: it is not an object of these specs, so the device closes
        it.
        """
        return self._users.pop(id(network), None) is not None
