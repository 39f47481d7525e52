//! What can happen in a run, in the command line's form: `lose-node:n3`, `add-node:name=n9,disks=4x6TiB:ssd`.

use crate::core::placement::{ChangeMap, FailureDomain, NodeSpec};
use crate::core::units::{ParseUnit, parse_bytes_per_sec};

/// A change of the cluster.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// A node with all its data is gone.
    LoseNode(String),
    /// A disk with its data is gone.
    LoseDisk(String),
    /// A node is to be emptied and removed.
    DrainNode(String),
    /// A node with empty disks joins.
    AddNode(NodeSpec),
    /// A disk gives another rate from now on.
    SlowDisk {
        /// Its id as the map writes it.
        disk: String,
        /// What it gives.
        bytes_per_sec: u64,
    },
    /// A pool's replica count changes.
    Replicas {
        /// The pool's name.
        pool: String,
        /// The new count.
        replicas: u32,
    },
    /// A pool's failure domain changes.
    FailureDomain {
        /// The pool's name.
        pool: String,
        /// The new one.
        domain: FailureDomain,
    },
}

/// A change and its moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// Seconds since the start.
    pub at_seconds: f64,
    /// As written.
    pub text: String,
    /// What happens.
    pub change: Change,
}

impl Event {
    /// From its two parts.
    ///
    /// # Errors
    /// The text is no event.
    pub fn new(at_seconds: f64, text: &str) -> Result<Self, ParseEvent> {
        Ok(Event { at_seconds, text: text.to_owned(), change: text.parse()? })
    }
}

/// A text that is no event.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseEvent {
    /// Not a known kind with a name.
    #[error(
        "{text:?} is not an event: write lose-node:NAME, lose-disk:ID, drain-node:NAME, add-node:SPEC, slow-disk:ID=RATE, \
         replicas:POOL=N or failure-domain:POOL=DOMAIN"
    )]
    Unknown {
        /// As written.
        text: String,
    },
    /// A node spec with a mistake.
    #[error(transparent)]
    Node(#[from] ChangeMap),
    /// A rate with a mistake.
    #[error(transparent)]
    Rate(#[from] ParseUnit),
}

impl std::str::FromStr for Change {
    type Err = ParseEvent;

    fn from_str(text: &str) -> Result<Self, ParseEvent> {
        let unknown = || ParseEvent::Unknown { text: text.to_owned() };
        let (kind, what) = text.split_once(':').filter(|(_, w)| !w.is_empty()).ok_or_else(unknown)?;
        let pair = || what.split_once('=').ok_or_else(unknown);
        Ok(match kind {
            "lose-node" => Change::LoseNode(what.to_owned()),
            "lose-disk" => Change::LoseDisk(what.to_owned()),
            "drain-node" | "remove-node" => Change::DrainNode(what.to_owned()),
            "add-node" => Change::AddNode(what.parse()?),
            "slow-disk" => {
                let (disk, rate) = pair()?;
                Change::SlowDisk { disk: disk.to_owned(), bytes_per_sec: parse_bytes_per_sec(rate)? }
            }
            "replicas" => {
                let (pool, n) = pair()?;
                Change::Replicas { pool: pool.to_owned(), replicas: n.parse().map_err(|_| unknown())? }
            }
            "failure-domain" => {
                let (pool, domain) = pair()?;
                let domain = FailureDomain::parse(domain).ok_or_else(unknown)?;
                Change::FailureDomain { pool: pool.to_owned(), domain }
            }
            _ => return Err(unknown()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_parse_and_mistakes_are_named() {
        assert_eq!("lose-node:n3".parse(), Ok(Change::LoseNode("n3".to_owned())));
        assert_eq!("slow-disk:d3=10MiB/s".parse(), Ok(Change::SlowDisk { disk: "d3".into(), bytes_per_sec: 10 << 20 }));
        assert!(matches!("add-node:name=n9,disks=1x1TiB".parse(), Ok(Change::AddNode(n)) if n.disks.len() == 1));
        assert!(matches!("failure-domain:vms=rack".parse(), Ok(Change::FailureDomain { .. })));
        for (bad, expected) in [
            ("lose-node", "is not an event"),
            ("lose-node:", "is not an event"),
            ("loose-node:n3", "\"loose-node:n3\" is not an event"),
            ("add-node:name=n9", "needs disks"),
            ("slow-disk:d3=fast", "\"fast\" is not a size"),
            ("replicas:vms=x", "is not an event"),
            ("failure-domain:vms=moon", "is not an event"),
        ] {
            let told = bad.parse::<Change>().unwrap_err().to_string();
            assert!(told.contains(expected), "{bad}: {told}");
        }
    }
}
