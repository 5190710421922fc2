//! Faults of the networks.

use super::ChaosEnv;
use crate::{
    faults::{NetworkFault, Side},
    support::Proxy,
};

impl ChaosEnv {
    fn network(&self, side: Side) -> &Proxy {
        match side {
            Side::Source => &self.source_network,
            Side::Target => &self.target_network,
        }
    }

    pub(super) fn begin_network_fault(&self, side: Side, fault: NetworkFault) {
        let network = self.network(side);
        match fault {
            NetworkFault::Lost => network.cut(),
            NetworkFault::LostUnnoticed => network.cut_unnoticed(),
            NetworkFault::Refused => {
                network.set_closed(true);
                network.cut();
            }
            NetworkFault::Frozen(direction) | NetworkFault::BlackHole(direction) => {
                network.set_frozen(direction, true)
            }
            NetworkFault::Slow(direction) => network.set_bytes_per_second(direction, 200_000),
            NetworkFault::Corrupted(direction) => network.corrupt(direction, 3),
        }
    }

    pub(super) fn end_network_fault(&self, side: Side, fault: NetworkFault) {
        let network = self.network(side);
        match fault {
            NetworkFault::Lost | NetworkFault::LostUnnoticed => {}
            NetworkFault::Refused => network.set_closed(false),
            NetworkFault::Frozen(direction) => network.set_frozen(direction, false),
            NetworkFault::BlackHole(direction) => {
                network.cut();
                network.set_frozen(direction, false);
            }
            NetworkFault::Slow(direction) => network.set_bytes_per_second(direction, 0),
            NetworkFault::Corrupted(direction) => network.corrupt(direction, 0),
        }
    }
}
