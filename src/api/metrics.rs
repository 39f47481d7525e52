//! One table of all metrics, and typed handles for each daemon.
//!
//! Names are `evenkeel_*` in base units (seconds, bytes); counters end in `_total`. A daemon registers the rows of its
//! role, so that a row stands here once, whoever reports it. Labels have few values each: kinds, classes, states, disks.

use prometheus::{
    Counter as FloatCounter, Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::core::cluster::ResyncClass;

mod cluster;
#[cfg(test)]
mod tests;
mod throttle;

pub use cluster::ClusterGauges;
pub use prometheus::IntGauge;
pub use throttle::ThrottleMetrics;

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Distribution.
    Histogram,
}

/// Which daemons report a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Daemon {
    /// Coordinator.
    Coordinator,
    /// Node.
    Node,
    /// Gateway.
    Gateway,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, serde::Serialize, schemars::JsonSchema)]
pub struct Row {
    /// Full name.
    pub name: &'static str,
    /// Kind.
    pub kind: Kind,
    /// Base unit; empty: a count.
    pub unit: &'static str,
    /// Labels.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
    /// Who reports it.
    pub daemons: &'static [Daemon],
}

use Daemon::{Coordinator, Gateway, Node};
use Kind::{Counter, Gauge, Histogram as Histo};

macro_rules! rows {
    ($($id:ident $name:literal $kind:ident $unit:literal [$($label:literal),*] [$($daemon:ident),+] $help:literal;)*) => {
        $(pub(crate) const $id: Row = Row {
            name: $name, kind: $kind, unit: $unit, labels: &[$($label),*], help: $help, daemons: &[$($daemon),+],
        };)*
        /// Every metric of every daemon.
        pub const TABLE: &[Row] = &[$($id),*];
    };
}

rows! {
    FOREGROUND_OPERATIONS "evenkeel_foreground_operations_total" Counter "" ["kind"] [Node, Gateway]
        "Foreground operations done, by kind (read, write, flush, trim, zero).";
    FOREGROUND_BYTES "evenkeel_foreground_bytes_total" Counter "bytes" ["kind"] [Node, Gateway]
        "Foreground bytes read and written, by kind.";
    FOREGROUND_LATENCY "evenkeel_foreground_latency_seconds" Histo "seconds" ["kind"] [Node, Gateway]
        "Time from a foreground operation's arrival to its answer, by kind.";
    FOREGROUND_ERRORS "evenkeel_foreground_errors_total" Counter "" ["kind"] [Node, Gateway]
        "Foreground operations answered by an error, by kind.";
    RESYNC_BYTES "evenkeel_resync_bytes_total" Counter "bytes" ["class"] [Node, Coordinator]
        "Verified bytes that resync wrote to targets, by class.";
    ACTIVE_MOVES "evenkeel_active_moves" Gauge "" [] [Node, Coordinator]
        "Copies that run now.";
    PENDING_MOVES "evenkeel_pending_moves" Gauge "" [] [Coordinator]
        "Moves that the plan still wants, running ones included.";
    THROTTLE_RATE "evenkeel_throttle_rate_bytes_per_second" Gauge "bytes per second" ["disk"] [Node]
        "What the throttle allows resync now, by disk; 0: unlimited.";
    THROTTLE_TARGET "evenkeel_throttle_target_seconds" Gauge "seconds" ["disk"] [Node]
        "Foreground p99 that the throttle aims at, by disk; 0: not known yet.";
    THROTTLE_BASELINE "evenkeel_throttle_baseline_seconds" Gauge "seconds" ["disk"] [Node]
        "Foreground p99 without resync, as learnt and raised towards the median of the disk's class, by disk; 0: not known yet.";
    THROTTLE_P99 "evenkeel_throttle_p99_seconds" Gauge "seconds" ["disk"] [Node]
        "Recent foreground p99 of the kind of operation that is furthest from its target, by disk; 0: none.";
    THROTTLE_LIMITED_BY "evenkeel_throttle_limited_by" Gauge "" ["disk", "reason"] [Node]
        "1 for what bounds resync on the disk now, 0 for the other reasons.";
    HASH_MISMATCHES "evenkeel_hash_mismatches_total" Counter "" [] [Node, Gateway]
        "Blocks whose content did not match their hash.";
    RESYNC_SENT "evenkeel_resync_sent_bytes_total" Counter "bytes" ["class"] [Node]
        "Bytes of resync that this node put on the wire, by class: tables, hashes and blocks, both ways.";
    FSYNCS "evenkeel_fsyncs_total" Counter "" [] [Node, Coordinator]
        "Times that data was forced to stable storage.";
    FSYNC_SECONDS "evenkeel_fsync_seconds_total" Counter "seconds" [] [Node, Coordinator]
        "Time that forcing data to stable storage took.";
    DISK_USED "evenkeel_disk_used_bytes" Gauge "bytes" ["disk"] [Node, Coordinator]
        "Bytes in used slots, by disk.";
    DISK_CAPACITY "evenkeel_disk_capacity_bytes" Gauge "bytes" ["disk"] [Node, Coordinator]
        "Bytes that slots can hold, by disk.";
    PGS "evenkeel_pgs" Gauge "" ["state"] [Coordinator]
        "Placement groups by state; misplaced ones are clean too.";
    NODES "evenkeel_nodes" Gauge "" ["state"] [Coordinator]
        "Nodes by state.";
    MAP_VERSION "evenkeel_map_version" Gauge "" [] [Node, Gateway, Coordinator]
        "Version of the cluster map here.";
    CONNECTIONS "evenkeel_connections" Gauge "" [] [Gateway]
        "NBD connections that are open.";
    HEALTH "evenkeel_health" Gauge "" [] [Coordinator]
        "0 ok, 1 warn, 2 error.";
    BUILD_INFO "evenkeel_build_info" Gauge "" ["version"] [Node, Gateway, Coordinator]
        "1, with the release of the binary.";
    CERTIFICATE_EXPIRY "evenkeel_certificate_expiry_timestamp_seconds" Gauge "seconds" ["certificate"] [Node, Gateway, Coordinator]
        "Unix time at which the daemon's own certificate, or the cluster's authority (ca), runs out.";
    COORDINATOR_CONNECTED "evenkeel_coordinator_connected" Gauge "" [] [Node, Gateway]
        "1 while the link to the coordinator is up.";
    GATEWAY_INFO "evenkeel_gateway_info" Gauge "" ["volume"] [Gateway]
        "1, with the volume that the gateway serves or waits for.";
    EVENTS "evenkeel_events_total" Counter "" ["kind"] [Coordinator]
        "Events since the coordinator's start, by kind.";
    FEATURE_LEVEL "evenkeel_feature_level" Gauge "" [] [Coordinator]
        "What every member can decode.";
    PGS_AT_RISK "evenkeel_pgs_at_risk" Gauge "" [] [Coordinator]
        "Placement groups of several copies of which at most one answers.";
    NODE_UP "evenkeel_node_up" Gauge "" ["node"] [Coordinator]
        "1 if the coordinator hears the node, else 0; removed nodes are left out.";
    NODE_INFO "evenkeel_node_info" Gauge "" ["node", "state", "zone", "rack", "release"] [Coordinator]
        "1, with a node's state, place and release.";
    DISK_INFO "evenkeel_disk_info" Gauge "" ["disk", "node", "class", "state"] [Coordinator]
        "1, with a disk's node, class and state.";
    DISK_PG_REPLICAS "evenkeel_disk_pg_replicas" Gauge "" ["disk"] [Coordinator]
        "Members of placement groups on a disk.";
    DISK_PRIMARIES "evenkeel_disk_primaries" Gauge "" ["disk"] [Coordinator]
        "Of them, primaries.";
    DISK_LAGGING "evenkeel_disk_lagging_seconds" Gauge "seconds" ["disk"] [Coordinator]
        "Age of the oldest operation that waits for a disk, if that is more than half a second; else 0.";
    PROVISIONED "evenkeel_provisioned_bytes" Gauge "bytes" [] [Coordinator]
        "Bytes that all volumes could grow to, each once.";
    MAP_OUTDATED "evenkeel_map_outdated" Gauge "" [] [Coordinator]
        "1 if nodes have seen a newer map than this coordinator has: it was started on an old copy, and changes nothing.";
    MISSING_CAPACITY "evenkeel_missing_capacity_bytes" Gauge "bytes" [] [Coordinator]
        "Bytes of copies for which the plan found no place.";
    VOLUMES "evenkeel_volumes" Gauge "" ["state"] [Coordinator]
        "Volumes by state (ok, degraded, unavailable, deleting).";
    VOLUME_SIZE "evenkeel_volume_size_bytes" Gauge "bytes" ["volume", "pool"] [Coordinator]
        "Size of a volume; of the first 4,096, those that are not ok before the others.";
    VOLUME_PGS "evenkeel_volume_pgs" Gauge "" ["volume", "state"] [Coordinator]
        "Placement groups of a volume by state; of the same volumes.";
    VOLUME_ATTACHED "evenkeel_volume_attached" Gauge "" ["volume"] [Coordinator]
        "1 if a gateway serves the volume; of the same volumes.";
    RESYNC_RATE "evenkeel_resync_rate_bytes_per_second" Gauge "bytes per second" [] [Coordinator]
        "Verified bytes that resync writes now.";
    RESYNC_LEFT "evenkeel_resync_left_bytes" Gauge "bytes" ["class"] [Coordinator]
        "Bytes that are left to look at or copy, by class.";
    RESYNC_DONE "evenkeel_resync_job_done_bytes" Gauge "bytes" [] [Coordinator]
        "Bytes of the running job that are copied or were found equal; 0 when nothing runs.";
    RESYNC_MOVES "evenkeel_resync_moves" Gauge "" ["class", "state"] [Coordinator]
        "Copies that run (active) or wait for a slot (waiting), by class.";
    RESYNC_ETA "evenkeel_resync_eta_seconds" Gauge "seconds" ["bound"] [Coordinator]
        "Time until all copies are done (low, likely, high); 0: nothing to do, below 0: diverging, NaN: not known yet.";
    RESYNC_LIMITED_BY "evenkeel_resync_limited_by" Gauge "" ["reason"] [Coordinator]
        "Running copies by what bounds them.";
    RESYNC_STALLED "evenkeel_resync_stalled_moves" Gauge "" [] [Coordinator]
        "Copies without progress although nothing holds them back.";
    RESYNC_PAUSED "evenkeel_resync_paused" Gauge "" [] [Coordinator]
        "1 while the operator has paused resync.";
    RESYNC_CAP "evenkeel_resync_cap_bytes_per_second" Gauge "bytes per second" [] [Coordinator]
        "The cap for each disk; 0: none.";
    RESYNC_FLOOR "evenkeel_resync_floor_bytes_per_second" Gauge "bytes per second" [] [Coordinator]
        "What resync gets on each disk however busy guests are.";
    RESYNC_INFLATION "evenkeel_resync_target_inflation_ratio" Gauge "ratio" [] [Coordinator]
        "Foreground p99 that the throttle aims at, as a multiple of the quiet one.";
    RESYNC_TARGET "evenkeel_resync_target_latency_seconds" Gauge "seconds" [] [Coordinator]
        "Foreground p99 that the throttle aims at, if one is set; else 0.";
}

/// From 50 µs, a fast flush, to 26 s, a stall: 20 buckets, each twice the one before.
fn latency_buckets() -> Vec<f64> {
    (0..20).map(|i| 0.000_05 * f64::from(1 << i)).collect()
}

fn int(v: u64) -> i64 {
    i64::try_from(v).unwrap_or(i64::MAX)
}

/// Registers rows of the table. A row that can't be registered is a mistake in the table, which a test finds; the
/// handle then counts without being shown.
struct Registrar {
    registry: Registry,
}

macro_rules! make {
    ($self:ident, $made:expr, $row:ident) => {{
        let made = $made;
        if let Err(error) = $self.registry.register(Box::new(made.clone())) {
            tracing::error!(name = $row.name, %error, "a metric is not shown");
        }
        made
    }};
}

impl Registrar {
    fn counters(&self, row: Row) -> IntCounterVec {
        make!(self, IntCounterVec::new(Opts::new(row.name, row.help), row.labels).expect("a row of the table"), row)
    }
    fn counter(&self, row: Row) -> IntCounter {
        make!(self, IntCounter::new(row.name, row.help).expect("a row of the table"), row)
    }
    fn gauges(&self, row: Row) -> IntGaugeVec {
        make!(self, IntGaugeVec::new(Opts::new(row.name, row.help), row.labels).expect("a row of the table"), row)
    }
    fn float_gauges(&self, row: Row) -> GaugeVec {
        make!(self, GaugeVec::new(Opts::new(row.name, row.help), row.labels).expect("a row of the table"), row)
    }
    fn gauge(&self, row: Row) -> IntGauge {
        make!(self, IntGauge::new(row.name, row.help).expect("a row of the table"), row)
    }
    fn histograms(&self, row: Row) -> HistogramVec {
        let opts = HistogramOpts::new(row.name, row.help).buckets(latency_buckets());
        make!(self, HistogramVec::new(opts, row.labels).expect("a row of the table"), row)
    }
    fn seconds(&self, row: Row) -> FloatCounter {
        make!(self, FloatCounter::new(row.name, row.help).expect("a row of the table"), row)
    }
}

/// Kinds of foreground operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush.
    Flush,
    /// Trim.
    Trim,
    /// Write zeroes.
    Zero,
}

impl Operation {
    const ALL: [Operation; 5] = [Operation::Read, Operation::Write, Operation::Flush, Operation::Trim, Operation::Zero];

    fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
            Operation::Trim => "trim",
            Operation::Zero => "zero",
        }
    }
}

/// Foreground figures; handles are resolved once, so that an operation costs a few atomic additions.
#[derive(Clone)]
pub struct ForegroundMetrics {
    by_kind: [ForegroundKind; 5],
}

#[derive(Clone)]
struct ForegroundKind {
    operations: IntCounter,
    bytes: IntCounter,
    errors: IntCounter,
    latency: Histogram,
}

impl ForegroundMetrics {
    fn new(r: &Registrar) -> Self {
        let (operations, bytes) = (r.counters(FOREGROUND_OPERATIONS), r.counters(FOREGROUND_BYTES));
        let (errors, latency) = (r.counters(FOREGROUND_ERRORS), r.histograms(FOREGROUND_LATENCY));
        let by_kind = Operation::ALL.map(|kind| {
            let label = &[kind.name()];
            ForegroundKind {
                operations: operations.with_label_values(label),
                bytes: bytes.with_label_values(label),
                errors: errors.with_label_values(label),
                latency: latency.with_label_values(label),
            }
        });
        ForegroundMetrics { by_kind }
    }

    /// An operation that succeeded.
    pub fn done(&self, kind: Operation, bytes: u64, latency: std::time::Duration) {
        let k = &self.by_kind[kind as usize];
        k.operations.inc();
        k.bytes.inc_by(bytes);
        k.latency.observe(latency.as_secs_f64());
    }

    /// An operation that was answered by an error.
    pub fn failed(&self, kind: Operation) {
        self.by_kind[kind as usize].errors.inc();
    }

    /// Bytes of a kind so far.
    pub fn bytes(&self, kind: Operation) -> u64 {
        self.by_kind[kind as usize].bytes.get()
    }

    /// Operations of a kind so far.
    pub fn operations(&self, kind: Operation) -> u64 {
        self.by_kind[kind as usize].operations.get()
    }
}

/// Resync bytes by class.
#[derive(Clone)]
pub struct ResyncBytes {
    by_class: [IntCounter; 5],
}

impl ResyncBytes {
    fn new(r: &Registrar, row: Row) -> Self {
        let vec = r.counters(row);
        ResyncBytes { by_class: ResyncClass::ALL.map(|c| vec.with_label_values(&[c.name()])) }
    }

    /// Verified bytes were written to a target.
    pub fn add(&self, class: ResyncClass, bytes: u64) {
        self.by_class[class as usize].inc_by(bytes);
    }

    /// So far, in the order of `ResyncClass::ALL`.
    pub fn totals(&self) -> [u64; 5] {
        [0, 1, 2, 3, 4].map(|i| self.by_class[i].get())
    }

    /// Brings the counter up to a total that is kept elsewhere; never down.
    pub fn raise_to(&self, class: ResyncClass, total: u64) {
        let counter = &self.by_class[class as usize];
        counter.inc_by(total.saturating_sub(counter.get()));
    }
}

/// Space by disk.
#[derive(Clone)]
pub struct SpaceMetrics {
    used: IntGaugeVec,
    capacity: IntGaugeVec,
}

impl SpaceMetrics {
    fn new(r: &Registrar) -> Self {
        SpaceMetrics { used: r.gauges(DISK_USED), capacity: r.gauges(DISK_CAPACITY) }
    }

    /// A disk's figures now.
    pub fn set(&self, disk: crate::core::ids::DiskId, used_bytes: u64, capacity_bytes: u64) {
        let label = disk.to_string();
        self.used.with_label_values(&[&label]).set(int(used_bytes));
        self.capacity.with_label_values(&[&label]).set(int(capacity_bytes));
    }
}

/// Fsyncs, and the time that they took.
#[derive(Clone)]
pub struct FsyncMetrics {
    count: IntCounter,
    seconds: FloatCounter,
}

impl FsyncMetrics {
    fn new(r: &Registrar) -> Self {
        FsyncMetrics { count: r.counter(FSYNCS), seconds: r.seconds(FSYNC_SECONDS) }
    }

    /// One took this long.
    pub fn done(&self, took: std::time::Duration) {
        self.count.inc();
        self.seconds.inc_by(took.as_secs_f64());
    }

    /// Brings the counters up to totals that are kept elsewhere; never down.
    pub fn raise_to(&self, count: u64, took: std::time::Duration) {
        self.count.inc_by(count.saturating_sub(self.count.get()));
        self.seconds.inc_by((took.as_secs_f64() - self.seconds.get()).max(0.0));
    }
}

/// What every daemon says of itself.
#[derive(Clone)]
pub struct SelfMetrics {
    certificates: IntGaugeVec,
}

impl SelfMetrics {
    fn new(r: &Registrar) -> Self {
        r.gauges(BUILD_INFO).with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        SelfMetrics { certificates: r.gauges(CERTIFICATE_EXPIRY) }
    }

    /// When its certificate, and the cluster's authority, run out: Unix seconds.
    pub fn set_certificates(&self, own_unix_seconds: u64, ca_unix_seconds: u64) {
        self.certificates.with_label_values(&["own"]).set(int(own_unix_seconds));
        self.certificates.with_label_values(&["ca"]).set(int(ca_unix_seconds));
    }
}

/// Handles of a node.
#[derive(Clone)]
pub struct NodeMetrics {
    registry: Registry,
    /// Of the daemon itself.
    pub daemon: SelfMetrics,
    /// 1 while the coordinator is connected.
    pub coordinator: IntGauge,
    /// Operations as primary.
    pub foreground: ForegroundMetrics,
    /// As target.
    pub resync_bytes: ResyncBytes,
    /// Sessions that this node drives.
    pub active_moves: IntGauge,
    /// Each disk's throttle.
    pub throttle: ThrottleMetrics,
    /// Blocks that didn't match.
    pub hash_mismatches: IntCounter,
    /// Sent for resync.
    pub resync_sent: ResyncBytes,
    /// Of all disks.
    pub fsyncs: FsyncMetrics,
    /// Space by disk.
    pub space: SpaceMetrics,
    /// Map here.
    pub map_version: IntGauge,
}

impl NodeMetrics {
    /// Prometheus text.
    pub fn text(&self) -> String {
        text(&self.registry)
    }
}

/// Handles of a gateway.
#[derive(Clone)]
pub struct GatewayMetrics {
    registry: Registry,
    /// Of the daemon itself.
    pub daemon: SelfMetrics,
    /// 1 while the coordinator is connected.
    pub coordinator: IntGauge,
    /// Operations of guests.
    pub foreground: ForegroundMetrics,
    /// Blocks that didn't match on arrival here.
    pub hash_mismatches: IntCounter,
    /// Open NBD connections.
    pub connections: IntGauge,
    /// Map here.
    pub map_version: IntGauge,
}

impl GatewayMetrics {
    /// Prometheus text.
    pub fn text(&self) -> String {
        text(&self.registry)
    }
}

/// Handles of a coordinator.
#[derive(Clone)]
pub struct CoordinatorMetrics {
    registry: Registry,
    /// Of the daemon itself.
    pub daemon: SelfMetrics,
    /// Of the cluster, as it is at a scrape.
    pub cluster: ClusterGauges,
    events: IntCounterVec,
    /// Over the cluster's life.
    pub resync_bytes: ResyncBytes,
    /// Learners in configurations.
    pub active_moves: IntGauge,
    /// Of the plan.
    pub pending_moves: IntGauge,
    pgs: IntGaugeVec,
    nodes: IntGaugeVec,
    /// Of the store.
    pub fsyncs: FsyncMetrics,
    /// Map here.
    pub map_version: IntGauge,
    /// 0 ok, 1 warn, 2 error.
    pub health: IntGauge,
}

impl CoordinatorMetrics {
    /// An event of this kind.
    pub fn count_event(&self, kind: &str) {
        self.events.with_label_values(&[kind]).inc();
    }
    /// Shows the kinds that have not happened yet, so that their first event is seen as a rise.
    pub fn show_events(&self, kinds: &[&str]) {
        kinds.iter().for_each(|kind| drop(self.events.with_label_values(&[*kind])));
    }
    /// PGs of a state.
    pub fn set_pgs(&self, state: &str, count: u64) {
        self.pgs.with_label_values(&[state]).set(int(count));
    }
    /// Nodes of each state; states that are absent go to zero.
    pub fn set_nodes(&self, counts: &std::collections::BTreeMap<String, u64>) {
        self.nodes.reset();
        for (state, count) in counts {
            self.nodes.with_label_values(&[state]).set(int(*count));
        }
    }
    /// Prometheus text.
    pub fn text(&self) -> String {
        let mut text = text(&self.registry);
        self.cluster.print(&mut text);
        text
    }
}

/// Makes the handles of each daemon.
pub struct Metrics;

impl Metrics {
    /// For a node.
    pub fn node() -> NodeMetrics {
        let r = Registrar { registry: Registry::new() };
        NodeMetrics {
            daemon: SelfMetrics::new(&r),
            coordinator: r.gauge(COORDINATOR_CONNECTED),
            foreground: ForegroundMetrics::new(&r),
            resync_bytes: ResyncBytes::new(&r, RESYNC_BYTES),
            resync_sent: ResyncBytes::new(&r, RESYNC_SENT),
            active_moves: r.gauge(ACTIVE_MOVES),
            throttle: ThrottleMetrics::new(&r),
            hash_mismatches: r.counter(HASH_MISMATCHES),
            fsyncs: FsyncMetrics::new(&r),
            space: SpaceMetrics::new(&r),
            map_version: r.gauge(MAP_VERSION),
            registry: r.registry,
        }
    }

    /// For a gateway of this volume.
    pub fn gateway(volume: &str) -> GatewayMetrics {
        let r = Registrar { registry: Registry::new() };
        r.gauges(GATEWAY_INFO).with_label_values(&[volume]).set(1);
        GatewayMetrics {
            daemon: SelfMetrics::new(&r),
            coordinator: r.gauge(COORDINATOR_CONNECTED),
            foreground: ForegroundMetrics::new(&r),
            hash_mismatches: r.counter(HASH_MISMATCHES),
            connections: r.gauge(CONNECTIONS),
            map_version: r.gauge(MAP_VERSION),
            registry: r.registry,
        }
    }

    /// For a coordinator.
    pub fn coordinator() -> CoordinatorMetrics {
        let r = Registrar { registry: Registry::new() };
        CoordinatorMetrics {
            daemon: SelfMetrics::new(&r),
            cluster: ClusterGauges::new(),
            events: r.counters(EVENTS),
            resync_bytes: ResyncBytes::new(&r, RESYNC_BYTES),
            active_moves: r.gauge(ACTIVE_MOVES),
            pending_moves: r.gauge(PENDING_MOVES),
            pgs: r.gauges(PGS),
            nodes: r.gauges(NODES),
            fsyncs: FsyncMetrics::new(&r),
            map_version: r.gauge(MAP_VERSION),
            health: r.gauge(HEALTH),
            registry: r.registry,
        }
    }
}

fn text(registry: &Registry) -> String {
    let mut out = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&registry.gather(), &mut out) {
        tracing::error!(%error, "the metrics can't be shown");
    }
    String::from_utf8(out).unwrap_or_default()
}
