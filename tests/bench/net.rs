//! The network's cost: round trips and CPU of small messages, and bulk throughput, by datagram size, offload and runtime.
//!
//! Both ends run in this process on loopback. CPU is the whole process's, so of both ends together.
//! `cargo bench --bench net [seconds per bulk measurement]`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use evenkeel::core::ids::{ClusterId, NodeId};
use evenkeel::net::ca::ClusterCa;
use evenkeel::net::channel::{Receiver, Sender};
use evenkeel::net::identity::{Identity, PendingIdentity, Role, cert_pem};
use evenkeel::net::quic::{Endpoint, Link};
use evenkeel::net::tls::Expect;
use evenkeel::net::tuning::{LinkClass, PathKind, Tuning};
use evenkeel::wire::frame::Frame;

const REQUEST: u16 = 1;
const BULK: u16 = 2;
const SMALL_SECONDS: f64 = 1.0;

#[derive(Clone, Copy, Debug)]
enum Threads {
    /// One multi-thread runtime for both ends.
    Pool,
    /// A current-thread runtime for each end.
    TwoSingles,
}

fn main() -> Result<()> {
    let bulk_seconds = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(3.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let ca = ClusterCa::create(ClusterId(rand::random()), now)?;
    let a = identity(&ca, 1, now)?;
    let b = identity(&ca, 2, now)?;
    let loopback = |bytes, offload| Tuning {
        path: PathKind::Loopback,
        loopback_datagram_bytes: bytes,
        loopback_offload: offload,
        ..Tuning::default()
    };
    let lan = |offload| Tuning { path: PathKind::Lan, lan_offload: offload, ..Tuning::default() };
    let narrow =
        |bytes, window| Tuning { stream_window_bytes: window, link_window_bytes: window, ..loopback(bytes, false) };
    let variants = [
        ("LAN, 1452 + discovery, GSO", lan(true), Threads::TwoSingles),
        ("fixed 1452, GSO", loopback(1452, true), Threads::TwoSingles),
        ("fixed 6500, GSO", loopback(6500, true), Threads::TwoSingles),
        ("fixed 15000", loopback(15_000, false), Threads::TwoSingles),
        ("fixed 32000", loopback(32_000, false), Threads::TwoSingles),
        ("fixed 32000, 1 MiB window", narrow(32_000, 1 << 20), Threads::TwoSingles),
        ("fixed 65000, 1 MiB window", narrow(65_000, 1 << 20), Threads::TwoSingles),
        ("fixed 15000", loopback(15_000, false), Threads::Pool),
        ("fixed 32000", loopback(32_000, false), Threads::Pool),
        ("fixed 32000, 1 MiB window", narrow(32_000, 1 << 20), Threads::Pool),
    ];
    println!("| datagrams | runtime | QD1 µs | QD1 CPU µs | QD16 ops/s | QD16 CPU µs | bulk MB/s | bulk CPU ms/GB |");
    println!("|---|---|---|---|---|---|---|---|");
    for (name, tuning, threads) in variants {
        let m = measure(a.clone(), b.clone(), tuning, threads, bulk_seconds).with_context(|| name.to_owned())?;
        println!(
            "| {name} | {threads:?} | {:.1} | {:.1} | {:.0} | {:.1} | {:.0} | {:.0} |",
            m.one.elapsed_us_per_op,
            m.one.cpu_us_per_op,
            1e6 / m.sixteen.elapsed_us_per_op,
            m.sixteen.cpu_us_per_op,
            BULK_BYTES as f64 / m.bulk.elapsed_us_per_op,
            m.bulk.cpu_us_per_op * 1e6 / BULK_BYTES as f64,
        );
    }
    Ok(())
}

fn identity(ca: &ClusterCa, id: u32, now: u64) -> Result<Arc<Identity>> {
    let pending = PendingIdentity::generate()?;
    let cert = ca.issue(pending.request_pem(), &Role::Node(NodeId(id)), now)?;
    Ok(Arc::new(pending.complete(&cert, &cert_pem(&ca.cert()), Some(ca.fingerprint()))?))
}

#[derive(Clone, Copy)]
struct Cost {
    elapsed_us_per_op: f64,
    cpu_us_per_op: f64,
}

struct Measured {
    one: Cost,
    sixteen: Cost,
    bulk: Cost,
}

const BULK_BYTES: usize = 256 << 10;

fn measure(
    a: Arc<Identity>,
    b: Arc<Identity>,
    tuning: Tuning,
    threads: Threads,
    bulk_seconds: f64,
) -> Result<Measured> {
    let any: SocketAddr = "127.0.0.1:0".parse()?;
    let client = |b_addr, tuning| async move {
        let endpoint = Endpoint::bind(any, a, tuning)?;
        let link = endpoint.connect(b_addr, Expect::AnyNode, LinkClass::Foreground).await?;
        let (send, mut recv) = link.open_channel(Frame::new(0, Bytes::new())).await?.split();
        round_trips(&send, &mut recv, 1, 0.2).await?;
        let one = round_trips(&send, &mut recv, 1, SMALL_SECONDS).await?;
        let sixteen = round_trips(&send, &mut recv, 16, SMALL_SECONDS).await?;
        let bulk = bulk(&send, &mut recv, bulk_seconds).await?;
        endpoint.close("done").await;
        anyhow::Ok(Measured { one, sixteen, bulk })
    };
    match threads {
        Threads::Pool => {
            let pool = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            pool.block_on(async move {
                let endpoint = Endpoint::bind(any, b, tuning.clone())?;
                let addr = endpoint.local_addr()?;
                let server = tokio::spawn(serve(endpoint));
                let measured = tokio::spawn(client(addr, tuning)).await??;
                server.await??;
                Ok(measured)
            })
        }
        Threads::TwoSingles => {
            let (to_client, from_server) = std::sync::mpsc::channel();
            let server_tuning = tuning.clone();
            let server = std::thread::spawn(move || -> Result<()> {
                single()?.block_on(async move {
                    let endpoint = Endpoint::bind(any, b, server_tuning)?;
                    to_client.send(endpoint.local_addr()?)?;
                    serve(endpoint).await
                })
            });
            let addr = from_server.recv()?;
            let measured = single()?.block_on(client(addr, tuning))?;
            server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
            Ok(measured)
        }
    }
}

fn single() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn serve(endpoint: Endpoint) -> Result<()> {
    let link: Link = endpoint.accept().await.context("no link came")?;
    let (_, channel) = link.accept_channel().await?;
    let (send, mut recv) = channel.split();
    let answer = Bytes::from_static(&[0; 20]);
    let mut batch = Vec::new();
    while recv.recv_batch(&mut batch).await.is_some() {
        for frame in batch.drain(..) {
            send.send_async(Frame::new(frame.kind, answer.clone())).await?;
        }
    }
    Ok(())
}

/// 4 KiB requests, 32 B answers, `depth` in flight.
async fn round_trips(send: &Sender, recv: &mut Receiver, depth: usize, seconds: f64) -> Result<Cost> {
    let payload = Bytes::from(vec![7; 4096]);
    in_flight(send, recv, depth, seconds, || {
        Frame::with_payload(REQUEST, Bytes::from_static(&[1; 24]), payload.clone())
    })
    .await
}

/// 256 KiB frames, 16 in flight, each answered.
async fn bulk(send: &Sender, recv: &mut Receiver, seconds: f64) -> Result<Cost> {
    let payload = Bytes::from(vec![7; BULK_BYTES]);
    in_flight(send, recv, 16, seconds, || Frame::with_payload(BULK, Bytes::new(), payload.clone())).await
}

async fn in_flight(
    send: &Sender,
    recv: &mut Receiver,
    depth: usize,
    seconds: f64,
    frame: impl Fn() -> Frame,
) -> Result<Cost> {
    let (start, cpu) = (Instant::now(), cpu_time());
    for _ in 0..depth {
        send.send_async(frame()).await?;
    }
    let mut batch = Vec::new();
    let (mut answered, mut pending) = (0_u64, depth);
    while pending > 0 {
        let count = recv.recv_batch(&mut batch).await.context("the channel ended")?;
        batch.clear();
        answered += count as u64;
        pending -= count;
        if start.elapsed().as_secs_f64() < seconds {
            for _ in 0..count {
                send.send_async(frame()).await?;
            }
            pending += count;
        }
    }
    let per_op = |d: Duration| d.as_secs_f64() * 1e6 / answered as f64;
    Ok(Cost { elapsed_us_per_op: per_op(start.elapsed()), cpu_us_per_op: per_op(cpu_time() - cpu) })
}

fn cpu_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}
