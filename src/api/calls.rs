//! What the HTTP layer asks of the daemon that serves it.

use tokio::sync::oneshot;

use super::types;

/// One request of the admin API, decoded.
#[derive(Clone, Debug)]
pub enum AdminCall {
    /// GET /v1/status
    Status,
    /// GET /v1/nodes
    Nodes,
    /// GET /v1/nodes/{name}
    Node(String),
    /// GET /v1/disks
    Disks,
    /// GET /v1/pools
    Pools,
    /// GET /v1/pools/{name}
    Pool(String),
    /// GET /v1/volumes
    Volumes,
    /// GET /v1/volumes/{name}
    Volume(String),
    /// GET /v1/pgs
    Pgs,
    /// GET /v1/pgs/{id}
    Pg(String),
    /// POST /v1/pgs/{id}/force-promote
    ForcePromote(String, types::ForcePromoteRequest),
    /// GET /v1/map
    Map,
    /// GET /v1/map/export
    MapExport,
    /// GET /v1/resync
    Resync,
    /// GET /v1/jobs
    Jobs,
    /// GET /v1/jobs/{id}
    Job(String),
    /// POST /v1/jobs/{id}/pause, resume, cancel
    JobChange(String, JobChange),
    /// GET /v1/events
    Events {
        /// Only younger ones.
        after: u64,
    },
    /// POST /v1/pools
    PoolCreate(types::PoolCreate),
    /// PATCH /v1/pools/{name}
    PoolSet(String, types::PoolSet),
    /// DELETE /v1/pools/{name}
    PoolDelete(String),
    /// POST /v1/volumes
    VolumeCreate(types::VolumeCreate),
    /// PATCH /v1/volumes/{name}
    VolumeSet(String, types::VolumeSet),
    /// DELETE /v1/volumes/{name}
    VolumeDelete(String),
    /// POST /v1/ok-to-stop
    OkToStop(types::OkToStopRequest),
    /// POST /v1/nodes/{name}/state
    NodeState(String, types::NodeStateSet),
    /// POST /v1/plan
    Plan(types::PlanRequest),
    /// PATCH /v1/resync
    ResyncSet(types::ResyncSet),
    /// POST /v1/tokens
    TokenCreate(types::TokenCreate),
    /// POST /v1/join
    Join(types::JoinRequest),
    /// POST /v1/certificates
    Certificate(types::CertificateRequest),
    /// GET /metrics
    Metrics,
    /// GET /v1/prometheus/targets
    ScrapeTargets,
}

/// Who asks, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// What it may do.
    pub caller: Caller,
    /// It is on this host.
    pub loopback: bool,
    /// For the event log: by what it is known, and its address.
    pub asker: String,
}

/// What an operator wants of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobChange {
    /// Hold everything of it back.
    Pause,
    /// Let it go on; plan a cancelled one anew.
    Resume,
    /// Give up its drains and rebalances.
    Cancel,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Holds the bearer token or an operator's certificate.
    Operator,
    /// Holds a viewer's token or certificate: reads only.
    Viewer,
    /// Nobody known: the join endpoint, and on loopback `/metrics` and where to find others' metrics.
    Anyone,
}

/// Why a call failed: an HTTP status and one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallFailed {
    /// HTTP status.
    pub status: u16,
    /// Names the thing and the way out.
    pub message: String,
}

impl CallFailed {
    /// With a status.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        CallFailed { status, message: message.into() }
    }
}

/// The answer: a body, JSON but for `/metrics`.
pub type Answer = Result<Vec<u8>, CallFailed>;

/// A call on its way to its daemon.
#[derive(Debug)]
pub struct AdminMessage {
    /// What.
    pub call: AdminCall,
    /// See [`Access::asker`].
    pub asker: String,
    /// Where the answer goes; gone if the client hung up.
    pub reply: oneshot::Sender<Answer>,
}
