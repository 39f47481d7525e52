//! Control links: accepts them, reads their frames, answers heartbeats.
//!
//! A heartbeat is stamped and answered here, so that a slow commit of the owner never looks like a dead peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message;
use tokio::sync::mpsc;

use super::owner::{Conn, Input, PeerRole};
use super::wiring;
use crate::core::manager::runtime::ConnId;
use crate::net::quic::{CloseReason, Endpoint, Link};
use crate::net::tuning::LinkClass;
use crate::wire::control::{Heartbeat, HeartbeatAck, kind};

/// How often this process looks whether it was itself stopped.
const PULSE: Duration = Duration::from_millis(50);
/// A gap between two looks that is not scheduling.
const FROZEN_AFTER: Duration = Duration::from_millis(400);

/// Accepts links until the endpoint is closed.
pub async fn accept(endpoint: Arc<Endpoint>, inbox: mpsc::Sender<Input>, map_version: Arc<AtomicU64>) {
    let next = Arc::new(AtomicU64::new(1));
    while let Some(link) = endpoint.accept().await {
        let (inbox, map_version, next) = (inbox.clone(), map_version.clone(), next.clone());
        tokio::spawn(async move {
            if link.class() == LinkClass::Control {
                serve(link, inbox, map_version, &next).await;
            } else {
                link.close("a coordinator takes control links only");
            }
        });
    }
}

/// Each channel of a link is a peer of its own; a well-behaved one opens one.
async fn serve(link: Link, inbox: mpsc::Sender<Input>, map_version: Arc<AtomicU64>, next: &AtomicU64) {
    while let Ok((hello, channel)) = link.accept_channel().await {
        let id = ConnId(next.fetch_add(1, Ordering::Relaxed));
        let (sender, mut receiver) = channel.split();
        let acks = sender.clone();
        let conn = Conn {
            peer: link.peer().clone(),
            sender,
            link: link.clone(),
            role: PeerRole::New,
            has_version: None,
            admin_url: String::new(),
        };
        let (inbox, map_version, link) = (inbox.clone(), map_version.clone(), link.clone());
        tokio::spawn(async move {
            let mut frames = vec![hello];
            if inbox.send(Input::Opened(id, conn)).await.is_err() {
                return;
            }
            loop {
                let at = wiring::now();
                for frame in frames.drain(..) {
                    if frame.kind == kind::HEARTBEAT
                        && let Ok(beat) = Heartbeat::decode(frame.meta.clone())
                    {
                        let ack = HeartbeatAck { n: beat.n, map_version: map_version.load(Ordering::Relaxed) };
                        // A peer that doesn't take its acks finds out by their absence.
                        let _ = acks.send(wiring::frame(kind::HEARTBEAT_ACK, &ack));
                    }
                    if inbox.send(Input::Frame(id, frame, at)).await.is_err() {
                        return;
                    }
                }
                if receiver.recv_batch(&mut frames).await.is_none() {
                    break;
                }
            }
            let reason = link.close_reason().or_else(|| receiver.close_reason().cloned());
            let by_process = !matches!(reason, None | Some(CloseReason::TimedOut | CloseReason::Local));
            // The owner is gone when the daemon stops.
            let _ = inbox.send(Input::Closed(id, by_process)).await;
        });
    }
}

/// Tells the owner when this process was stopped for a while.
pub async fn pulse(inbox: mpsc::Sender<Input>) {
    let mut last = wiring::now();
    loop {
        tokio::time::sleep(PULSE).await;
        let now = wiring::now();
        let gap = now.since(last);
        last = now;
        if gap >= FROZEN_AFTER && inbox.send(Input::Frozen(gap)).await.is_err() {
            return;
        }
    }
}
