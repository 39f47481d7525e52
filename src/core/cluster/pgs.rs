//! Changes of one PG's configuration (R2, R3, R5).
//!
//! ```text
//!             RemoveMembers (primary; rest ≥ min)         Promote (coordinator; order, dead ones may go)
//!   members ────────────────────────────────────▶ gone     members ─▶ members in another order
//!      ▲      RemoveSurplus (coordinator; rest ≥ count,      (generation + 1)
//!      │      all of it there, not the primary)
//!      │ PromoteLearner (primary; complete, live; generation + 1)
//!   learners ◀── AddLearner, PauseLearner (coordinator)  ──▶ DropLearner (either; the generation stays)
//!      ▲
//!      ├── SetMembers: no member lives at its recorded boot with a whole copy (R2; generation + 1, durability epoch + 1)
//!      └── ForcePromote (operator): too few members live for min_replicas (R5; generation + 1, and the durability epoch
//!          unless the chosen one holds every acked write). `forced` until they are enough again
//! ```

use super::command::{Change, Context, ForcePromote, Outcome, Proposal, Refusal};
use super::state::{Record, Tx};
use super::{Learner, PgConfig, Pool, Replica};
use crate::core::ids::{Generation, PgId};

/// Learners of one PG at once: every copy of the largest pool may come anew.
pub const LEARNERS_MAX: usize = super::state::REPLICAS_MAX as usize;

impl Tx<'_> {
    fn config(&self, pg: PgId) -> Result<(PgConfig, &Pool), Refusal> {
        let unknown = || Refusal::Unknown { what: "pg", name: pg.to_string() };
        let config = self.map.pgs.get(&pg).ok_or_else(unknown)?;
        let pool = self.map.pools.get(&pg.pool).ok_or_else(unknown)?;
        Ok((config.clone(), pool))
    }

    fn config_at(&self, pg: PgId, base: Generation) -> Result<(PgConfig, &Pool), Refusal> {
        let (config, pool) = self.config(pg)?;
        if config.generation != base {
            return Err(Refusal::GenerationMoved { pg, have: config.generation, base });
        }
        Ok((config, pool))
    }

    pub(super) fn propose(&mut self, p: Proposal, context: &Context<'_>) -> Result<Outcome, Refusal> {
        if p.id == 0 {
            return Err(Refusal::ProposalZero);
        }
        if self.config(p.pg)?.0.last_proposal == p.id {
            return Ok(Outcome::Done); // Carried out before; only the reply was lost.
        }
        let (mut config, pool) = self.config_at(p.pg, p.base)?;
        let primary = config.primary().unwrap_or_default();
        if self.map.disks.get(&primary.disk).map(|d| d.node) != Some(p.from) {
            return Err(Refusal::NotPrimary { pg: p.pg, from: p.from });
        }
        let (pg, wanted, min_replicas) = (p.pg, pool.replicas as usize, pool.min_replicas as usize);
        let text = match p.change {
            Change::RemoveMembers(gone) => {
                if let Some(replica) = gone.iter().find(|r| !config.is_member(**r)) {
                    return Err(Refusal::NotMember { pg, replica: *replica });
                }
                let rest = config.members.iter().filter(|m| !gone.contains(m)).count();
                if rest < pool.min_replicas as usize || rest == 0 {
                    return Err(Refusal::BelowMinimum { pg, rest, min_replicas: pool.min_replicas });
                }
                let reached = |r: &&Replica| {
                    **r != primary && context.liveness.is_live(**r) && !context.liveness.accusation_stands(pg, **r)
                };
                if let Some(replica) = gone.iter().find(reached) {
                    return Err(Refusal::OthersReachIt { pg, replica: *replica });
                }
                config.members.retain(|m| !gone.contains(m));
                settle(&mut config);
                config.generation = config.generation.next();
                let disks: Vec<String> = gone.iter().map(|r| r.disk.to_string()).collect();
                format!("PG {pg} goes on without {}: {}.", disks.join(", "), clip(&p.reason))
            }
            Change::PromoteLearner(replica) => {
                let at = config.learners.iter().position(|l| l.replica == replica);
                let at = at.ok_or(Refusal::NotLearner { pg, replica })?;
                if !context.liveness.is_live(replica) {
                    return Err(Refusal::NotLive { replica });
                }
                let learner = config.learners.remove(at);
                let seat = learner.replaces.and_then(|d| config.members.iter().position(|m| m.disk == d));
                match seat {
                    Some(seat) => config.members[seat] = replica,
                    None => {
                        let live = config.members.iter().filter(|m| context.liveness.is_live(**m)).count();
                        if live >= wanted {
                            return Err(Refusal::NotNeeded { pg, replicas: live });
                        }
                        config.members.push(replica);
                        // A dead member beyond the count makes room in the same step.
                        while config.members.len() > wanted {
                            let dead = config.members.iter().rposition(|m| !context.liveness.is_live(*m));
                            let Some(dead) = dead else { break };
                            config.members.remove(dead);
                        }
                    }
                }
                settle(&mut config);
                config.generation = config.generation.next();
                match learner.replaces {
                    Some(old) if old != replica.disk => format!("PG {pg} moved from {old} to {}.", replica.disk),
                    _ => format!("PG {pg} has a complete copy on {}.", replica.disk),
                }
            }
            Change::DropLearner(replica) => {
                let before = config.learners.len();
                config.learners.retain(|l| l.replica != replica);
                if config.learners.len() == before {
                    return Err(Refusal::NotLearner { pg, replica });
                }
                format!("PG {pg} dropped the incomplete copy on {}: {}.", replica.disk, clip(&p.reason))
            }
        };
        config.last_proposal = p.id;
        config.forced &= config.members.len() < min_replicas;
        if config.has_enough() {
            config.members_min = 0;
        }
        self.tell("pg-changed", text);
        self.write(Record::Pg(config));
        Ok(Outcome::Done)
    }

    pub(super) fn promote(
        &mut self,
        pg: PgId,
        base: Generation,
        members: Vec<Replica>,
        context: &Context<'_>,
    ) -> Result<Outcome, Refusal> {
        let (mut config, pool) = self.config_at(pg, base)?;
        if let Some(replica) = members.iter().find(|r| !config.is_member(**r)) {
            return Err(Refusal::NotMember { pg, replica: *replica });
        }
        let first = *members.first().ok_or(Refusal::BelowMinimum { pg, rest: 0, min_replicas: pool.min_replicas })?;
        if !context.liveness.is_live(first) {
            return Err(Refusal::NotLive { replica: first });
        }
        let left_out: Vec<Replica> = config.members.iter().filter(|m| !members.contains(m)).copied().collect();
        if let Some(replica) = left_out.iter().find(|r| context.liveness.is_live(**r)) {
            return Err(Refusal::MemberAlive { pg, replica: *replica });
        }
        let distinct: std::collections::BTreeSet<&Replica> = members.iter().collect();
        if (!left_out.is_empty() && members.len() < pool.min_replicas as usize) || distinct.len() != members.len() {
            return Err(Refusal::BelowMinimum { pg, rest: distinct.len(), min_replicas: pool.min_replicas });
        }
        if members == config.members {
            return Ok(Outcome::Done);
        }
        let old = config.primary().map_or_else(String::new, |p| p.disk.to_string());
        if config.primary() != Some(first) {
            self.tell("pg-promoted", format!("PG {pg} is now served by {}, before by {old}.", first.disk));
        }
        config.members = members;
        settle(&mut config);
        config.generation = config.generation.next();
        self.write(Record::Pg(config));
        Ok(Outcome::Done)
    }

    /// The pool keeps fewer copies than the PG has. It goes on with the others only if each of them is there and whole, so
    /// that no more than was asked for is given up.
    pub(super) fn remove_surplus(
        &mut self,
        pg: PgId,
        base: Generation,
        replica: Replica,
        context: &Context<'_>,
    ) -> Result<Outcome, Refusal> {
        let (mut config, pool) = self.config_at(pg, base)?;
        let wanted = pool.replicas;
        if !config.is_member(replica) {
            return Err(Refusal::NotMember { pg, replica });
        }
        let refuse = |why| Err(Refusal::NotSurplus { pg, disk: replica.disk, why });
        if config.primary() == Some(replica) {
            return refuse("it is the primary's: another member must lead first");
        }
        let is_whole = |m: &&Replica| context.liveness.is_live(**m) && context.liveness.has_whole_copy(&config, **m);
        let rest = config.members.iter().filter(|m| **m != replica);
        if rest.clone().filter(is_whole).count() < rest.clone().count() {
            return refuse("another copy is not there, or not whole");
        }
        if rest.count() < wanted as usize {
            return refuse("its pool asks for it");
        }
        if config.learners.iter().any(|l| l.replaces == Some(replica.disk)) {
            return refuse("another copy is on its way to take its place");
        }
        config.members.retain(|m| *m != replica);
        settle(&mut config);
        config.generation = config.generation.next();
        if config.has_enough() {
            config.members_min = 0;
        }
        self.tell("pg-changed", format!("PG {pg} gives up its copy on {}: its pool keeps {wanted}.", replica.disk));
        self.write(Record::Pg(config));
        Ok(Outcome::Done)
    }

    pub(super) fn add_learner(
        &mut self,
        pg: PgId,
        learner: Learner,
        context: &Context<'_>,
    ) -> Result<Outcome, Refusal> {
        let (mut config, _) = self.config(pg)?;
        let replica = learner.replica;
        self.disk(replica.disk)?;
        if config.is_member(replica) || config.learners.iter().any(|l| l.replica.disk == replica.disk) {
            return Err(Refusal::AlreadyThere { pg, replica });
        }
        // A disk's own stale entry is the one member that may share its disk.
        let own = config.members.iter().any(|m| m.disk == replica.disk);
        if own && learner.replaces != Some(replica.disk) {
            return Err(Refusal::AlreadyThere { pg, replica });
        }
        if let Some(gone) = learner.replaces.filter(|d| !config.members.iter().any(|m| m.disk == *d)) {
            return Err(Refusal::NotMember { pg, replica: Replica { disk: gone, ..Replica::default() } });
        }
        if !context.liveness.is_live(replica) {
            return Err(Refusal::NotLive { replica });
        }
        if config.learners.len() >= LEARNERS_MAX {
            return Err(Refusal::TooManyLearners { pg, have: config.learners.len(), max: LEARNERS_MAX });
        }
        config.learners.push(learner);
        self.write(Record::Pg(config));
        Ok(Outcome::Done)
    }

    pub(super) fn drop_learner(&mut self, pg: PgId, replica: Replica) -> Result<Outcome, Refusal> {
        let (mut config, _) = self.config(pg)?;
        let before = config.learners.len();
        config.learners.retain(|l| l.replica != replica);
        if config.learners.len() == before {
            return Err(Refusal::NotLearner { pg, replica });
        }
        self.write(Record::Pg(config));
        Ok(Outcome::Done)
    }

    pub(super) fn pause_learner(&mut self, pg: PgId, replica: Replica, paused: bool) -> Result<Outcome, Refusal> {
        let (mut config, _) = self.config(pg)?;
        let found = config.learners.iter_mut().find(|l| l.replica == replica);
        let learner = found.ok_or(Refusal::NotLearner { pg, replica })?;
        if std::mem::replace(&mut learner.paused, paused) != paused {
            self.write(Record::Pg(config));
        }
        Ok(Outcome::Done)
    }

    pub(super) fn set_members(
        &mut self,
        pg: PgId,
        base: Generation,
        truth: Replica,
        learners: Vec<Learner>,
        context: &Context<'_>,
    ) -> Result<Outcome, Refusal> {
        let (mut config, pool) = self.config_at(pg, base)?;
        let min_replicas = pool.min_replicas;
        let is_whole = |m: &&Replica| context.liveness.is_live(**m) && context.liveness.has_whole_copy(&config, **m);
        if let Some(replica) = config.members.iter().find(is_whole) {
            return Err(Refusal::MemberAlive { pg, replica: *replica });
        }
        if !config.members.iter().any(|m| m.disk == truth.disk) {
            return Err(Refusal::NotMember { pg, replica: truth });
        }
        let all = std::iter::once(truth).chain(learners.iter().map(|l| l.replica));
        if let Some(replica) = all.clone().find(|r| !context.liveness.is_live(*r)) {
            return Err(Refusal::NotLive { replica });
        }
        if learners.len() > LEARNERS_MAX {
            return Err(Refusal::TooManyLearners { pg, have: learners.len(), max: LEARNERS_MAX });
        }
        for learner in &learners {
            self.disk(learner.replica.disk)?;
            if learner.replica.disk == truth.disk {
                return Err(Refusal::AlreadyThere { pg, replica: learner.replica });
            }
        }
        // With an operator's word it served alone before, and may again.
        config.members_min = if config.forced { 0 } else { min_replicas };
        config.members = vec![truth];
        config.learners = learners;
        settle(&mut config);
        config.generation = config.generation.next();
        config.durability_epoch += 1;
        self.tell(
            "pg-recovered",
            format!(
                "All members of PG {pg} had restarted; {} has the newest stable copy and is taken as the truth.",
                truth.disk
            ),
        );
        self.write(Record::Pg(config));
        Ok(Outcome::Done)
    }

    /// R5's exception. A live member goes before every other copy: it holds every acked write, and might go on serving
    /// reads until it hears of the change.
    pub(super) fn force_promote(&mut self, force: ForcePromote, context: &Context<'_>) -> Result<Outcome, Refusal> {
        let ForcePromote { pg, base, chosen, learners, lossless, loss } = force;
        let (mut config, pool) = self.config_at(pg, base)?;
        let live: Vec<Replica> = config.members.iter().copied().filter(|m| context.liveness.is_live(*m)).collect();
        if live.len() >= pool.min_replicas as usize {
            return Err(Refusal::StillServed { pg, live: live.len(), min_replicas: pool.min_replicas });
        }
        if config.forced && live.len() == config.members.len() {
            return Err(Refusal::ForcedAlready { pg, disk: live.first().copied().unwrap_or_default().disk });
        }
        self.disk(chosen.disk)?;
        let member = live.contains(&chosen);
        if let Some(replica) = live.first().filter(|_| !member) {
            return Err(Refusal::MemberAlive { pg, replica: *replica });
        }
        let all = std::iter::once(chosen).chain(learners.iter().map(|l| l.replica));
        if let Some(replica) = all.clone().find(|r| !context.liveness.is_live(*r)) {
            return Err(Refusal::NotLive { replica });
        }
        if learners.len() > LEARNERS_MAX {
            return Err(Refusal::TooManyLearners { pg, have: learners.len(), max: LEARNERS_MAX });
        }
        for learner in &learners {
            self.disk(learner.replica.disk)?;
            if learner.replica.disk == chosen.disk {
                return Err(Refusal::AlreadyThere { pg, replica: learner.replica });
            }
        }
        config.members = vec![chosen];
        config.learners = learners;
        (config.forced, config.members_min) = (true, 0);
        settle(&mut config);
        config.generation = config.generation.next();
        config.durability_epoch += u64::from(!(member && lossless));
        self.tell("pg-forced", format!("PG {pg} was force-promoted: {} is its only member now; {loss}.", chosen.disk));
        self.write(Record::Pg(config));
        Ok(Outcome::Done)
    }
}

/// After a change of the members: a learner whose disk is now a member goes, and what a learner replaces must still
/// be a member.
fn settle(config: &mut PgConfig) {
    let members = &config.members;
    config.learners.retain(|l| !members.contains(&l.replica));
    let mut seen = std::collections::BTreeSet::new();
    config.learners.retain(|l| seen.insert(l.replica.disk));
    for learner in &mut config.learners {
        learner.replaces = learner.replaces.filter(|d| members.iter().any(|m| m.disk == *d));
    }
}

/// A peer's words in the event log are bounded.
fn clip(text: &str) -> String {
    let text = text.trim_end_matches('.');
    if text.is_empty() { "no reason given".to_owned() } else { text.chars().take(200).collect() }
}
