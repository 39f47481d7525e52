//! A disk (or link) in virtual time: guests and resync share a first-come, first-served queue with a few servers, and
//! the controller sees what a node would show it. One seed gives one run.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use evenkeel::core::throttle::{Controller, Decision, Histogram, Kind, Policy, Sample};

const TICK_NS: u64 = 100_000_000;
/// Resync's pump: how often it asks for tokens.
const PUMP_NS: u64 = 1_000_000;
const WINDOW: u64 = 256 << 10;
/// One session's limit: 4 MiB under way.
const WINDOWS_UNDER_WAY_MAX: u32 = 16;

/// xorshift64*: enough for a model, the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }
    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}

/// What the device does with a request.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    pub servers: usize,
    /// Bytes per second of one server.
    pub bandwidth: f64,
    /// Fixed part of each request: a seek between `seek_us.0` and `seek_us.1`.
    pub seek_us: (f64, f64),
    /// A pause of all servers (mean interval, length) in milliseconds.
    pub pause_ms: Option<(f64, f64)>,
}

impl Device {
    pub const HDD: Device = Device { servers: 1, bandwidth: 180e6, seek_us: (2_000.0, 12_000.0), pause_ms: None };
    pub const SSD: Device =
        Device { servers: 8, bandwidth: 120e6, seek_us: (60.0, 120.0), pause_ms: Some((4_000.0, 20.0)) };
    /// 1 Gbit/s.
    pub const NETWORK: Device = Device { servers: 1, bandwidth: 117e6, seek_us: (20.0, 60.0), pause_ms: None };
}

/// Guests' 4 KiB requests: an open loop at this rate, in each second of the run.
pub type Load = Box<dyn Fn(f64) -> f64>;

/// What one tick showed.
#[derive(Clone, Debug)]
pub struct Tick {
    pub seconds: f64,
    pub decision: Decision,
    pub resync_bytes: u64,
    pub latencies: Histogram,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Arrival,
    Served { since_ns: u64, foreground: bool },
    Pump,
    Tick,
    Pause,
    Resume,
}

pub struct Plant {
    device: Device,
    load: Load,
    random: Random,
    controller: Option<Controller>,
    /// Without a controller: this rate, always.
    pub fixed_rate: Option<u64>,
    /// Resync has work in this second.
    pub work: Load,
    events: BinaryHeap<Reverse<(u64, u64, What)>>,
    count: u64,
    now_ns: u64,
    queue: VecDeque<(u64, bool)>,
    busy: usize,
    paused: bool,
    under_way: u32,
    balance: f64,
    decision: Decision,
    sample: Sample,
    foreground_depth: u32,
    pub ticks: Vec<Tick>,
}

impl Plant {
    pub fn new(device: Device, load: Load, policy: Policy, seed: u64) -> Self {
        let mut controller = Controller::new(policy);
        let decision = controller.set_policy(policy);
        let mut plant = Plant {
            device,
            load,
            random: Random::new(seed),
            controller: Some(controller),
            fixed_rate: None,
            work: Box::new(|_| 1.0),
            events: BinaryHeap::new(),
            count: 0,
            now_ns: 0,
            queue: VecDeque::new(),
            busy: 0,
            paused: false,
            under_way: 0,
            balance: 0.0,
            decision,
            sample: Sample::default(),
            foreground_depth: 0,
            ticks: Vec::new(),
        };
        plant.at(0, What::Arrival);
        plant.at(0, What::Pump);
        plant.at(TICK_NS, What::Tick);
        plant.at(1_000_000, What::Resume);
        plant
    }

    /// The same plant with a fixed rate in place of the loop.
    pub fn fixed(device: Device, load: Load, rate: u64, seed: u64) -> Self {
        let mut plant = Plant::new(device, load, Policy::default(), seed);
        plant.controller = None;
        plant.fixed_rate = Some(rate);
        plant.decision.rate_bytes_per_sec = Some(rate);
        plant
    }

    fn at(&mut self, ns: u64, what: What) {
        self.count += 1;
        self.events.push(Reverse((ns, self.count, what)));
    }

    pub fn run_until(&mut self, seconds: f64) {
        let end = (seconds * 1e9) as u64;
        while let Some(Reverse((ns, _, what))) = self.events.pop() {
            self.now_ns = ns;
            self.handle(what);
            if ns >= end {
                break;
            }
        }
    }

    fn handle(&mut self, what: What) {
        let seconds = self.now_ns as f64 / 1e9;
        match what {
            What::Arrival => {
                let rate = (self.load)(seconds);
                if rate > 0.0 {
                    self.queue.push_back((self.now_ns, true));
                    self.foreground_depth += 1;
                }
                // While there is no load, look again each 10 ms.
                let mean = if rate > 0.0 { 1e9 / rate } else { 1e7 };
                let next = self.now_ns + self.random.exponential(mean) as u64 + 1;
                self.at(next, What::Arrival);
            }
            What::Served { since_ns, foreground } => {
                self.busy -= 1;
                if foreground {
                    self.foreground_depth -= 1;
                    self.sample.latencies.record_us(Kind::SmallRead, (self.now_ns - since_ns) / 1_000);
                } else {
                    self.under_way -= 1;
                }
            }
            What::Pump => {
                self.pump(seconds);
                self.at(self.now_ns + PUMP_NS, What::Pump);
            }
            What::Tick => {
                self.tick(seconds);
                self.at(self.now_ns + TICK_NS, What::Tick);
            }
            What::Pause => {
                self.paused = true;
                let length = self.device.pause_ms.map_or(0.0, |p| p.1);
                self.at(self.now_ns + (length * 1e6) as u64, What::Resume);
            }
            What::Resume => {
                self.paused = false;
                if let Some((every, _)) = self.device.pause_ms {
                    let next = self.now_ns + self.random.exponential(every * 1e6) as u64;
                    self.at(next, What::Pause);
                }
            }
        }
        self.serve();
    }

    fn serve(&mut self) {
        while self.busy < self.device.servers && !self.paused {
            let Some((since_ns, foreground)) = self.queue.pop_front() else { return };
            let bytes = if foreground { 4096.0 } else { WINDOW as f64 };
            let (low, high) = self.device.seek_us;
            let us = low + (high - low) * self.random.unit() + bytes / self.device.bandwidth * 1e6;
            self.busy += 1;
            self.at(self.now_ns + (us * 1e3) as u64, What::Served { since_ns, foreground });
        }
    }

    fn pump(&mut self, seconds: f64) {
        let rate = self.decision.rate_bytes_per_sec;
        if let Some(rate) = rate {
            let burst = (rate as f64 / 10.0).max(4096.0);
            self.balance = (self.balance + rate as f64 * PUMP_NS as f64 / 1e9).min(burst);
        } else {
            self.balance = 1.0;
        }
        while (self.work)(seconds) > 0.0 && self.under_way < WINDOWS_UNDER_WAY_MAX {
            if rate.is_some() && self.balance <= 0.0 {
                self.sample.resync_held_back = true;
                return;
            }
            if rate.is_some() {
                self.balance -= WINDOW as f64;
            }
            self.under_way += 1;
            self.sample.resync_bytes += WINDOW;
            self.sample.wanted[3] = true;
            self.queue.push_back((self.now_ns, false));
        }
    }

    fn tick(&mut self, seconds: f64) {
        let mut sample = std::mem::take(&mut self.sample);
        sample.elapsed = Duration::from_nanos(TICK_NS);
        sample.queue_depth = self.foreground_depth;
        if let Some(controller) = &mut self.controller {
            self.decision = controller.handle_sample(&sample);
        }
        self.ticks.push(Tick {
            seconds,
            decision: self.decision,
            resync_bytes: sample.resync_bytes,
            latencies: sample.latencies.guests(),
        });
    }

    /// Ticks of a span of time.
    pub fn span(&self, from: f64, to: f64) -> impl Iterator<Item = &Tick> {
        self.ticks.iter().filter(move |t| t.seconds > from && t.seconds <= to + 1e-6)
    }

    pub fn p99_us(&self, from: f64, to: f64) -> f64 {
        let mut sum = Histogram::default();
        self.span(from, to).for_each(|t| sum.merge(&t.latencies));
        sum.quantile_us(0.99).unwrap_or(0.0)
    }

    /// Resync's bytes per second.
    pub fn resync_rate(&self, from: f64, to: f64) -> f64 {
        self.span(from, to).map(|t| t.resync_bytes as f64).sum::<f64>() / (to - from)
    }
}
