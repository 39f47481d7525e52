//! Who has a volume, and who waits for it (R14).

use super::Manager;
use super::runtime::ConnId;
use crate::core::cluster::Volume;
use crate::core::cluster::command::{Command, Outcome, Refusal};
use crate::core::ids::VolumeId;

/// Gateways that may wait for one volume: a live migration has one.
const STANDBY_MAX: usize = 64;

/// A gateway that waits for a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Its connection.
    pub conn: ConnId,
    /// Its name.
    pub gateway: String,
}

/// What came of a gateway's wish.
#[derive(Clone, Debug, PartialEq)]
pub enum Attachment {
    /// It has the volume.
    Granted {
        /// As it is now, with the incarnation granted.
        volume: Box<Volume>,
        /// The gateway that lost it, with its incarnation.
        fenced: Option<(String, u64)>,
        /// What the gateway before had acked may be lost: the next FLUSH says so (R13).
        lost: bool,
    },
    /// Another gateway has it: the wish waits until that one releases it.
    Standby {
        /// Which volume.
        volume: VolumeId,
        /// Who has it.
        holder: String,
    },
}

impl Manager {
    /// A gateway wants a volume read-write.
    ///
    /// # Errors
    /// There is no such volume, or the name is not valid.
    pub fn handle_attach(
        &mut self,
        conn: ConnId,
        gateway: String,
        volume: &str,
        take_over: bool,
        had_incarnation: u64,
    ) -> Result<Attachment, Refusal> {
        let command =
            Command::Attach { volume: volume.to_owned(), gateway: gateway.clone(), take_over, had_incarnation };
        match self.apply(&gateway, command)?.outcome {
            Outcome::Attached { volume, fenced, lost } => {
                if let Some(queue) = self.standby.get_mut(&volume.id) {
                    queue.retain(|w| w.conn != conn);
                }
                Ok(Attachment::Granted { volume, fenced, lost })
            }
            Outcome::Standby { volume, holder } => {
                let queue = self.standby.entry(volume).or_default();
                if queue.iter().all(|w| w.conn != conn) && queue.len() < STANDBY_MAX {
                    queue.push_back(Waiter { conn, gateway });
                }
                Ok(Attachment::Standby { volume, holder })
            }
            _ => Err(Refusal::Unknown { what: "volume", name: volume.to_owned() }),
        }
    }

    /// A gateway has sent again what its volume's PGs may have lost (R13).
    pub fn handle_settled(&mut self, gateway: &str, volume: VolumeId, incarnation: u64, durability: u64) {
        let holds = |v: &Volume| v.attached_to == gateway && v.durability != durability;
        if self.state.map().volumes.get(&volume).is_some_and(holds) {
            // A refusal: its word came late.
            drop(self.apply(gateway, Command::Settle { volume, incarnation, durability }));
        }
    }

    /// A gateway gives a volume back. `untold`: a loss has not been told to the guest. Gives the volume's name and who is
    /// next, for whom to call [`Manager::handle_attach`].
    pub fn handle_release(
        &mut self,
        gateway: &str,
        volume: VolumeId,
        incarnation: u64,
        untold: bool,
    ) -> Option<(String, Waiter)> {
        let holds = self.state.map().volumes.get(&volume).is_some_and(|v| v.attached_to == gateway);
        // If not, it was taken over before, or this release comes late.
        if !holds || self.apply(gateway, Command::Release { volume, incarnation, untold }).is_err() {
            return None;
        }
        let next = self.standby.get_mut(&volume).and_then(|q| q.pop_front())?;
        Some((self.state.map().volumes.get(&volume)?.name.clone(), next))
    }
}
