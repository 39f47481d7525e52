//! What a link is for, and the transport settings that follow from that and from the path.
//!
//! QUIC's cost is per packet. On loopback, large datagrams without segmentation offload are cheapest; on a LAN, datagrams of the
//! Ethernet MTU with offload, and path MTU discovery for jumbo frames. quinn hangs if one datagram exceeds the initial congestion window,
//! so both are raised together.
//!
//! Idle timeouts: a killed peer looks like silence, so they bound failure detection. The lower of both ends' values holds, and the
//! dialer alone knows the class when a link starts: so the listener offers a long one, and only the dialer sends keep-alives.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

/// What a link is for. Each class has a connection of its own, so that one can't hold up another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum LinkClass {
    /// Guests' reads and writes.
    Foreground = 1,
    /// Background copies.
    Resync = 2,
    /// Membership, the cluster map, reports.
    Control = 3,
    /// Lease grants and renewals.
    Lease = 4,
}

impl LinkClass {
    pub(super) fn from_wire(v: u32) -> Option<LinkClass> {
        [LinkClass::Foreground, LinkClass::Resync, LinkClass::Control, LinkClass::Lease]
            .into_iter()
            .find(|c| *c as u32 == v)
    }

    /// After this long without a packet the peer counts as lost.
    pub fn idle_timeout(self) -> Duration {
        match self {
            LinkClass::Foreground | LinkClass::Control => Duration::from_millis(2500),
            LinkClass::Resync => Duration::from_millis(5000),
            LinkClass::Lease => Duration::from_millis(1000),
        }
    }

    /// A fifth of the idle timeout: four lost packets in a row don't end a link.
    fn keep_alive(self) -> Duration {
        self.idle_timeout() / 5
    }
}

/// The longest of the classes' timeouts: what a listener offers.
const IDLE_TIMEOUT_MAX: Duration = Duration::from_millis(5000);

/// Which settings a path gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PathKind {
    /// By the peer's address.
    #[default]
    Auto,
    /// One host.
    Loopback,
    /// Ethernet.
    Lan,
}

/// An endpoint's settings. The defaults are the measured best.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Overrides the choice by address.
    pub path: PathKind,
    /// UDP payload on loopback.
    pub loopback_datagram_bytes: u16,
    /// Segmentation offload on loopback.
    pub loopback_offload: bool,
    /// UDP payload that a LAN surely carries; discovery goes on from there up to jumbo frames.
    pub lan_datagram_bytes: u16,
    /// Segmentation offload on a LAN.
    pub lan_offload: bool,
    /// Asked for at the kernel, which may grant less: bursts of a whole window must fit.
    pub socket_buffer_bytes: usize,
    /// Initial congestion window.
    pub congestion_window_bytes: u64,
    /// Unread bytes per channel that a peer may have in flight to us: bounds memory.
    pub stream_window_bytes: u32,
    /// Unacknowledged and unread bytes per link, each way: bounds memory.
    pub link_window_bytes: u32,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            path: PathKind::Auto,
            loopback_datagram_bytes: 32_000,
            loopback_offload: false,
            lan_datagram_bytes: 1452,
            lan_offload: true,
            socket_buffer_bytes: 4 << 20,
            congestion_window_bytes: 4 << 20,
            stream_window_bytes: 8 << 20,
            link_window_bytes: 16 << 20,
        }
    }
}

/// Largest UDP payload that IPv4 carries, less room for the kernel's headers.
const DATAGRAM_BYTES_MAX: u16 = 65_000;
/// quinn pads handshake packets to the minimum MTU, and each packet of an offloaded batch to the current one; a padded handshake packet
/// of 16 KiB or more doesn't fit its length field, and quinn-proto panics.
const PADDED_BYTES_MAX: u16 = 15_000;
/// quinn hands up to ten datagrams to the kernel at once, which takes 64 KiB: ten larger ones are refused, and count as lost (measured:
/// 8,952 B with offload fall to 5 MB/s).
const OFFLOADED_BYTES_MAX: u16 = 6500;
/// Jumbo frames, less IP and UDP headers: where discovery stops.
const JUMBO_BYTES: u16 = 8952;
/// Channels that a peer may hold open on one link: one per PG and purpose, with room.
const CHANNELS_MAX: u32 = 1024;

impl Tuning {
    /// Whether a path to or from `ip` gets loopback settings.
    pub fn is_loopback(&self, ip: IpAddr) -> bool {
        match self.path {
            PathKind::Auto => ip.to_canonical().is_loopback(),
            PathKind::Loopback => true,
            PathKind::Lan => false,
        }
    }

    pub(super) fn max_datagram_bytes(&self) -> u16 {
        DATAGRAM_BYTES_MAX
    }

    /// A dialer's settings towards `ip`.
    pub(super) fn dialer(&self, ip: IpAddr, class: LinkClass) -> Arc<TransportConfig> {
        let mut config = self.base(ip);
        config.max_idle_timeout(idle(class.idle_timeout()));
        config.keep_alive_interval(Some(class.keep_alive()));
        Arc::new(config)
    }

    /// A listener's settings towards `ip`; the class is not known yet.
    pub(super) fn listener(&self, ip: IpAddr) -> Arc<TransportConfig> {
        let mut config = self.base(ip);
        config.max_idle_timeout(idle(IDLE_TIMEOUT_MAX));
        Arc::new(config)
    }

    fn base(&self, ip: IpAddr) -> TransportConfig {
        let mut config = TransportConfig::default();
        let mut congestion = CubicConfig::default();
        congestion.initial_window(self.congestion_window_bytes);
        config.congestion_controller_factory(Arc::new(congestion));
        config.stream_receive_window(VarInt::from_u32(self.stream_window_bytes));
        config.receive_window(VarInt::from_u32(self.link_window_bytes));
        config.send_window(u64::from(self.link_window_bytes));
        config.max_concurrent_bidi_streams(VarInt::from_u32(CHANNELS_MAX));
        config.max_concurrent_uni_streams(VarInt::from_u32(0));
        config.datagram_receive_buffer_size(None);
        if self.is_loopback(ip) {
            let max = if self.loopback_offload { OFFLOADED_BYTES_MAX } else { DATAGRAM_BYTES_MAX };
            let bytes = self.loopback_datagram_bytes.clamp(1200, max);
            config.min_mtu(bytes.min(PADDED_BYTES_MAX)).initial_mtu(bytes).mtu_discovery_config(None);
            config.enable_segmentation_offload(self.loopback_offload);
            config.initial_rtt(Duration::from_millis(2));
        } else {
            let mut discovery = MtuDiscoveryConfig::default();
            discovery.upper_bound(if self.lan_offload { OFFLOADED_BYTES_MAX } else { JUMBO_BYTES });
            config.initial_mtu(self.lan_datagram_bytes.clamp(1200, DATAGRAM_BYTES_MAX));
            config.mtu_discovery_config(Some(discovery));
            config.enable_segmentation_offload(self.lan_offload);
            config.initial_rtt(Duration::from_millis(50));
        }
        config
    }
}

fn idle(timeout: Duration) -> Option<IdleTimeout> {
    Some(IdleTimeout::from(VarInt::from_u32(timeout.as_millis() as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_round_trip_and_detect_in_time() {
        for class in [LinkClass::Foreground, LinkClass::Resync, LinkClass::Control, LinkClass::Lease] {
            assert_eq!(LinkClass::from_wire(class as u32), Some(class));
            assert!(class.idle_timeout() <= IDLE_TIMEOUT_MAX);
        }
        assert_eq!(LinkClass::from_wire(0), None);
        assert_eq!(LinkClass::from_wire(257), None);
    }

    #[test]
    fn the_address_chooses_unless_overridden() {
        let (lo, lan): (IpAddr, IpAddr) = ("127.0.1.7".parse().unwrap(), "10.0.0.1".parse().unwrap());
        let auto = Tuning::default();
        assert!(auto.is_loopback(lo) && auto.is_loopback("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!auto.is_loopback(lan));
        assert!(!Tuning { path: PathKind::Lan, ..auto.clone() }.is_loopback(lo));
        assert!(Tuning { path: PathKind::Loopback, ..auto }.is_loopback(lan));
    }
}
