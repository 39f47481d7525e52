//! What this module's tests share.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::ca::ClusterCa;
use super::identity::{Identity, PendingIdentity, Role, cert_pem};
use crate::core::ids::ClusterId;

/// A fixed moment for what never meets a real clock.
pub const NOW: u64 = 1_800_000_000;

pub struct TestCluster {
    pub id: ClusterId,
    pub ca: ClusterCa,
    pub now_unix_seconds: u64,
}

impl TestCluster {
    /// Its certificates are valid at [`NOW`] only.
    pub fn new(number: u8) -> TestCluster {
        TestCluster::at(number, NOW)
    }

    /// Its certificates are valid now.
    pub fn live(number: u8) -> TestCluster {
        TestCluster::at(number, SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
    }

    pub fn at(number: u8, now_unix_seconds: u64) -> TestCluster {
        let id = ClusterId([number; 16]);
        TestCluster { id, ca: ClusterCa::create(id, now_unix_seconds).unwrap(), now_unix_seconds }
    }

    pub fn identity(&self, role: Role) -> Arc<Identity> {
        self.identity_at(role, self.now_unix_seconds)
    }

    pub fn identity_at(&self, role: Role, now_unix_seconds: u64) -> Arc<Identity> {
        let pending = PendingIdentity::generate().unwrap();
        let cert = self.ca.issue(pending.request_pem(), &role, now_unix_seconds).unwrap();
        Arc::new(pending.complete(&cert, &cert_pem(&self.ca.cert()), Some(self.ca.fingerprint())).unwrap())
    }
}
