//! The run: events, plans, moves that start and end, one after the other.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::event::Event;
use super::flow::{Flow, rates};
use super::observe::Observer;
use super::report::{Ended, Report};
use super::state::State;
use super::{Options, RunSimulation, Sources, Until};
use crate::core::cluster::ResyncClass;
use crate::core::ids::{DiskId, NodeId, PgId};
use crate::core::moves::{self, Backlog, Room, Running, Wanted};
use crate::core::placement::{ClusterMap, CopyLeft, MoveClass, PendingMove, Plan, check, plan};

/// A change that keeps coming delays a plan by at most so many debounces, as in the coordinator.
const DEBOUNCES_MAX: f64 = 5.0;
/// Copies that end within this part of a mean copy's time end together: it bounds the steps of a run.
const STEP_RATIO: f64 = 0.01;
/// A run that is not done by then (ten years) is ended.
const SECONDS_MAX: f64 = 3.2e8;
/// Less than this is no rest of a copy but rounding.
const BYTES_EPS: f64 = 0.5;

/// A move of the plan.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub pg: PgId,
    pub row: usize,
    pub from: Option<DiskId>,
    pub to: usize,
    /// As the plan has it.
    pub class: MoveClass,
    pub bytes: u64,
    pub left: f64,
    pub done: bool,
    /// Where it is read, while it runs.
    source: Option<usize>,
    rate: f64,
}

pub(super) struct Run {
    pub state: State,
    pub options: Options,
    pub now: f64,
    pub copies: Vec<Copy>,
    /// Indexes into `copies`.
    pub waiting: Vec<usize>,
    pub running: Vec<usize>,
    /// Moves that each row still has.
    open_moves: HashMap<usize, u32>,
    /// The order that the plan wants of rows with moves.
    targets: HashMap<usize, Vec<DiskId>>,
    /// First and last change that no plan has seen.
    dirty: Option<(f64, f64)>,
    /// Disks that are given up at a time.
    away: VecDeque<(f64, BTreeSet<DiskId>)>,
    /// Copies that became whole under the present plan.
    finished: u64,
    last_plan: Plan,
    wasted: f64,
}

/// Runs `map` through `events`. Gives the report and the map at the end.
///
/// # Errors
/// An event names what isn't there then.
pub fn run(map: ClusterMap, events: &[Event], options: Options) -> Result<(Report, ClusterMap), RunSimulation> {
    let mut events: Vec<&Event> = events.iter().collect();
    events.sort_by(|a, b| a.at_seconds.total_cmp(&b.at_seconds));
    let mut events: VecDeque<&Event> = events.into();
    let mut run = Run::new(State::new(map, options.rates.clone()), options);
    let mut observer = Observer::default();
    observer.note(&run, "start");
    let ended = loop {
        while let Some(event) = events.front().filter(|e| e.at_seconds <= run.now) {
            run.happen(event)?;
            observer.note(&run, &event.text);
            events.pop_front();
        }
        run.give_up_due();
        if run.plan_at().is_some_and(|at| at <= run.now) {
            observer.carry(&run);
            run.replan()?;
            observer.open_job(&run, &run.last_plan);
        }
        run.drop_moot();
        run.schedule();
        observer.look(&run);
        let idle = run.running.is_empty() && run.waiting.is_empty();
        if idle && run.finished > 0 {
            observer.close_job(&run, true);
        }
        let quiet = events.is_empty() && run.dirty.is_none() && run.away.is_empty();
        if run.options.until == Until::Redundant && quiet && run.state.short == 0 {
            break Ended::Redundant;
        }
        if run.running.is_empty() && quiet {
            // What found no place may find one now.
            let more = !idle || !run.last_plan.rejected.is_empty();
            if !more || run.finished == 0 {
                break if idle && run.state.short == 0 { Ended::Balanced } else { Ended::Stuck };
            }
            run.finished = 0;
            run.touch();
        }
        let mut next = SECONDS_MAX;
        if let Until::Time(seconds) = run.options.until {
            next = next.min(seconds);
        }
        if run.now >= next {
            break Ended::Time;
        }
        next = next.min(events.front().map_or(next, |e| e.at_seconds));
        next = next.min(run.plan_at().unwrap_or(next));
        next = next.min(run.away.front().map_or(next, |a| a.0));
        next = next.min(observer.next_look(&run).unwrap_or(next));
        match run.next_end() {
            Some(end) => next = next.min(end),
            None if !run.running.is_empty() && quiet => break Ended::NoRate,
            None => {}
        }
        run.advance(next.max(run.now));
    };
    observer.close_job(&run, false);
    let report = observer.finish(&run, ended, &run.last_plan, run.wasted);
    run.state.measure();
    Ok((report, run.state.map))
}

impl Run {
    fn new(state: State, options: Options) -> Self {
        Run {
            state,
            options,
            now: 0.0,
            copies: Vec::new(),
            waiting: Vec::new(),
            running: Vec::new(),
            open_moves: HashMap::new(),
            targets: HashMap::new(),
            // A map need not be at rest.
            dirty: Some((0.0, 0.0)),
            away: VecDeque::new(),
            finished: 0,
            last_plan: Plan::default(),
            wasted: 0.0,
        }
    }

    fn touch(&mut self) {
        self.dirty = Some((self.dirty.map_or(self.now, |d| d.0), self.now));
    }

    fn plan_at(&self) -> Option<f64> {
        let debounce = self.options.debounce_seconds;
        self.dirty.map(|(first, last)| (last + debounce).min(first + debounce * DEBOUNCES_MAX))
    }

    fn happen(&mut self, event: &Event) -> Result<(), RunSimulation> {
        let lost = self.state.change(&event.change).map_err(|source| RunSimulation::Event {
            at: format!("{} s", event.at_seconds),
            event: event.text.clone(),
            source,
        })?;
        let is_lost: BTreeSet<usize> = lost.iter().filter_map(|d| self.state.disk_at.get(d).copied()).collect();
        // Copies to a lost disk are void; those from one go on from another.
        let void = |c: &Copy| is_lost.contains(&c.to);
        for &i in self.running.iter().chain(&self.waiting) {
            if void(&self.copies[i]) {
                self.wasted += self.copies[i].bytes as f64 - self.copies[i].left;
                self.copies[i].done = true;
            }
        }
        self.running.retain(|i| !self.copies[*i].done);
        self.waiting.retain(|i| !self.copies[*i].done);
        let (stay, stop): (Vec<usize>, Vec<usize>) =
            self.running.iter().partition(|i| self.copies[**i].source.is_some_and(|s| !is_lost.contains(&s)));
        self.running = stay;
        self.waiting.extend(stop);
        if lost.is_empty() {
            self.touch();
        } else {
            self.away.push_back((self.now + self.options.grace_seconds, lost.into_iter().collect()));
        }
        Ok(())
    }

    fn give_up_due(&mut self) {
        while let Some((_, disks)) = self.away.front().filter(|(at, _)| *at <= self.now).cloned() {
            self.away.pop_front();
            self.state.give_up(&disks);
            self.touch();
        }
    }

    fn replan(&mut self) -> Result<(), RunSimulation> {
        self.dirty = None;
        self.finished = 0;
        self.state.measure();
        let id_of = |d: usize| self.state.map.input.topology.disks[d].id;
        let under_way: HashMap<(PgId, DiskId), f64> = self
            .copies
            .iter()
            .filter(|c| !c.done && c.left < c.bytes as f64)
            .map(|c| ((c.pg, id_of(c.to)), c.left))
            .collect();
        let pending = self.running.iter().map(|&i| &self.copies[i]);
        let pending = pending.map(|c| PendingMove { pg: c.pg, from: c.from, to: id_of(c.to) }).collect();
        self.state.map.input.pending = pending;
        let made = plan(&self.state.map.input);
        if let Err(violations) = check(&self.state.map.input, &made) {
            let first = violations.first().map(ToString::to_string).unwrap_or_default();
            return Err(RunSimulation::PlanRefused { at: format!("{:.0} s", self.now), first });
        }
        self.state.map.input.pending.clear();
        // As in the coordinator, a repair that runs goes on, whether the new plan wants it there or not.
        let wanted: BTreeSet<(PgId, DiskId)> = made.moves.iter().map(|m| (m.pg, m.to)).collect();
        let goes_on = |c: &Copy| {
            !wanted.contains(&(c.pg, id_of(c.to)))
                && c.class.is_repair()
                && self.state.takes(c.to)
                && self.state.is_short(c.row)
        };
        let runs: HashMap<(PgId, DiskId), Copy> =
            self.running.iter().map(|i| &self.copies[*i]).map(|c| ((c.pg, id_of(c.to)), c.clone())).collect();
        self.copies = self.running.iter().map(|i| &self.copies[*i]).filter(|c| goes_on(c)).cloned().collect();
        self.waiting.clear();
        self.running = (0..self.copies.len()).collect();
        self.open_moves.clear();
        self.targets.clear();
        let mut kept: f64 = self.copies.iter().map(|c| c.bytes as f64 - c.left).sum();
        for m in &made.moves {
            let (Some(&row), Some(&to)) = (self.state.row_at.get(&m.pg), self.state.disk_at.get(&m.to)) else {
                continue;
            };
            let left = under_way.get(&(m.pg, m.to)).copied().unwrap_or(m.bytes as f64);
            kept += m.bytes as f64 - left;
            *self.open_moves.entry(row).or_default() += 1;
            let source = runs.get(&(m.pg, m.to)).and_then(|c| c.source);
            let list = if source.is_some() { &mut self.running } else { &mut self.waiting };
            list.push(self.copies.len());
            let (pg, from, class, bytes) = (m.pg, m.from, m.class, m.bytes);
            self.copies.push(Copy { pg, row, from, to, class, bytes, left, done: false, source, rate: 0.0 });
        }
        let begun: f64 =
            under_way.iter().map(|((pg, _), left)| self.state.row(self.state.row_at[pg]).bytes as f64 - left).sum();
        self.wasted += (begun - kept).max(0.0);
        for row in &made.target {
            let Some(&at) = self.state.row_at.get(&row.pg) else { continue };
            if self.open_moves.contains_key(&at) {
                self.targets.insert(at, row.disks.clone());
            } else if row.disks != self.state.row(at).disks {
                self.state.settle(at, &row.disks);
            }
        }
        self.last_plan = made;
        Ok(())
    }

    /// Drops repairs of PGs that are whole: a copy of the plan before came first. Another plan says where they belong.
    fn drop_moot(&mut self) {
        let is_moot = |c: &Copy| !c.from.is_some_and(|f| self.state.is_live(f)) && !self.state.is_short(c.row);
        let moot: BTreeSet<usize> =
            self.waiting.iter().chain(&self.running).copied().filter(|i| is_moot(&self.copies[*i])).collect();
        if moot.is_empty() {
            return;
        }
        for &i in &moot {
            self.copies[i].done = true;
            self.targets.remove(&self.copies[i].row);
            self.wasted += self.copies[i].bytes as f64 - self.copies[i].left;
        }
        self.waiting.retain(|i| !moot.contains(i));
        self.running.retain(|i| !moot.contains(i));
        self.touch();
    }

    /// A copy's class now, if it may run: not while another copy is missing and this one replaces a live one.
    fn class_now(&self, c: &Copy) -> Option<ResyncClass> {
        let live = self.state.live(c.row);
        let short = live < self.state.wanted[c.row].0;
        if c.from.is_some_and(|f| self.state.is_live(f)) {
            return (!short).then(|| c.class.into());
        }
        let class = if live <= 1 { ResyncClass::RepairCritical } else { ResyncClass::Repair };
        short.then_some(class)
    }

    fn wanted(&self, c: &Copy, class: ResyncClass, source: usize) -> Wanted {
        let disk = |d: usize| self.state.map.input.topology.disks[d].id;
        let node = |d: usize| NodeId(self.state.node_of[d] as u32);
        Wanted {
            pg: c.pg,
            source: disk(source),
            source_node: node(source),
            target: disk(c.to),
            target_node: node(c.to),
            bytes: c.bytes,
            class,
            rank: 0,
        }
    }

    fn source_of(&self, c: &Copy, reads: &[u64]) -> Option<usize> {
        match self.options.sources {
            Sources::Primary => self.state.source(c.row),
            Sources::AnyMember => {
                let members = self.state.row(c.row).disks.iter().filter(|d| self.state.is_live(**d));
                members.filter_map(|d| self.state.disk_at.get(d).copied()).min_by_key(|d| (reads[*d], *d))
            }
        }
    }

    /// Starts and stops moves as the production scheduler decides, and sets the rates.
    fn schedule(&mut self) {
        let disks = self.state.node_of.len();
        let slots = self.options.slots;
        let (mut reads, mut writes) = (vec![0usize; disks], vec![0usize; disks]);
        let mut queued = vec![0u64; disks];
        let mut backlog = Backlog::default();
        let mut running = Vec::with_capacity(self.running.len());
        let mut yielding = false;
        for &i in &self.running {
            let c = &self.copies[i];
            let source = c.source.unwrap_or(c.to);
            let class = self.class_now(c).unwrap_or_else(|| c.class.into());
            let wanted = Wanted { bytes: c.bytes, ..self.wanted(c, class, source) };
            backlog.add(&Wanted { bytes: c.left as u64, ..wanted });
            (reads[source], writes[c.to]) = (reads[source] + 1, writes[c.to] + 1);
            queued[source] = queued[source].saturating_add(c.left as u64);
            yielding |= class == ResyncClass::Rebalance;
            running.push(Running { wanted, planned: true });
        }
        let (mut wanted, mut from) = (Vec::new(), Vec::new());
        for &i in &self.waiting {
            let c = &self.copies[i];
            let Some(source) = self.source_of(c, &queued) else { continue };
            queued[source] = queued[source].saturating_add(c.left as u64);
            let w = self.wanted(c, c.class.into(), source);
            backlog.add(&w);
            if !self.state.takes(c.to) {
                continue;
            }
            let full = reads[source] >= slots.per_source || writes[c.to] >= slots.per_target;
            if full && !(yielding && c.class.is_repair()) {
                continue;
            }
            if let Some(class) = self.class_now(c) {
                wanted.push(Wanted { class, ..w });
                from.push((i, source));
            }
        }
        let free = |d: DiskId| self.state.disk_at.get(&d).map_or(0, |d| self.state.room(*d));
        let room = |d: DiskId| Room { free_bytes: free(d), is_slow: false };
        let decision = moves::schedule_some(&wanted, &running, &room, slots, &backlog);
        let stopped: BTreeSet<usize> = decision.stop.iter().map(|at| self.running[*at]).collect();
        let started: BTreeSet<usize> = decision.start.iter().map(|at| from[*at].0).collect();
        for at in decision.start {
            let (i, source) = from[at];
            self.copies[i].source = Some(source);
            self.running.push(i);
        }
        if !stopped.is_empty() {
            self.running.retain(|i| !stopped.contains(i));
        }
        if !started.is_empty() {
            self.waiting.retain(|i| !started.contains(i));
        }
        self.waiting.extend(&stopped);
        self.set_rates();
    }

    fn set_rates(&mut self) {
        let disks: Vec<f64> =
            self.state.map.input.topology.disks.iter().map(|d| self.state.rates.of_disk(d.id)).collect();
        let flow = |&i: &usize| {
            let c = &self.copies[i];
            let source = c.source.unwrap_or(c.to);
            let class = self.class_now(c).unwrap_or_else(|| c.class.into());
            let node = |d: usize| self.state.node_of[d];
            Flow { source, source_node: node(source), target: c.to, target_node: node(c.to), class: class as usize }
        };
        let flows: Vec<Flow> = self.running.iter().map(flow).collect();
        let all = rates(&flows, &disks, self.state.node_at.len(), self.state.rates.of_link());
        for (i, rate) in self.running.iter().zip(all) {
            self.copies[*i].rate = rate;
        }
    }

    /// Bytes per second of all copies.
    pub fn rate(&self) -> f64 {
        self.running.iter().map(|i| self.copies[*i].rate).sum()
    }

    /// When the next copies are whole.
    fn next_end(&self) -> Option<f64> {
        let mut first = f64::INFINITY;
        let (mut bytes, mut rate) = (0.0, 0.0);
        for c in self.running.iter().map(|i| &self.copies[*i]) {
            if c.left <= BYTES_EPS {
                return Some(self.now);
            }
            first = first.min(c.left / c.rate);
            (bytes, rate) = (bytes + c.bytes as f64, rate + c.rate);
        }
        first.is_finite().then(|| self.now + first.max(STEP_RATIO * bytes / rate))
    }

    fn advance(&mut self, to: f64) {
        let dt = to - self.now;
        self.now = to;
        let mut ended = Vec::new();
        for &i in &self.running {
            let c = &mut self.copies[i];
            c.left = (c.left - c.rate * dt).max(0.0);
            if c.left <= BYTES_EPS {
                c.left = 0.0;
                c.done = true;
                ended.push(i);
            }
        }
        if ended.is_empty() {
            return;
        }
        self.running.retain(|i| !self.copies[*i].done);
        for i in ended {
            let (row, from, to) = (self.copies[i].row, self.copies[i].from, self.copies[i].to);
            self.state.swap(row, from, to);
            self.finished += 1;
            let open = self.open_moves.entry(row).or_default();
            *open = open.saturating_sub(1);
            if *open == 0
                && let Some(target) = self.targets.remove(&row)
            {
                self.state.settle(row, &target);
            }
        }
    }

    /// What is left, for an ETA.
    pub fn copies_left(&self) -> Vec<CopyLeft> {
        let disk = |d: usize| self.state.map.input.topology.disks[d].id;
        let copy = |&i: &usize| {
            let c = &self.copies[i];
            CopyLeft {
                source: c.source.or_else(|| self.state.source(c.row)).map(disk),
                target: disk(c.to),
                bytes: c.left,
                is_repair: c.class.is_repair(),
            }
        };
        self.running.iter().chain(&self.waiting).map(copy).collect()
    }
}
