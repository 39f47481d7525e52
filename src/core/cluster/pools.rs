//! Pools: made with their first configurations, and changed while they serve.

use std::collections::BTreeSet;

use super::command::{Outcome, PoolChange, PoolSpec, Refusal, is_usable};
use super::state::{PG_COUNT_MAX, REPLICAS_MAX, Record, Tx, check_name, domain_of, take};
use super::{NodeAdminState, PgConfig, Pool, Replica};
use crate::core::ids::{Generation, PgId, PoolId};

impl Tx<'_> {
    pub(super) fn create_pool(&mut self, spec: PoolSpec, members: Vec<Vec<Replica>>) -> Result<Outcome, Refusal> {
        check_name("pool", &spec.name)?;
        if self.map.pools.values().any(|p| p.name == spec.name) {
            return Err(Refusal::NameTaken { what: "pool", name: spec.name });
        }
        check_replicas(spec.replicas, spec.min_replicas)?;
        if spec.pg_count == 0 || spec.pg_count > PG_COUNT_MAX {
            return Err(Refusal::PgCountInvalid(spec.pg_count));
        }
        let distinct = |m: &Vec<Replica>| m.iter().map(|r| r.disk).collect::<BTreeSet<_>>().len();
        let fewest = members.iter().map(distinct).min().unwrap_or(0);
        if fewest < spec.replicas as usize || members.len() != spec.pg_count as usize {
            return Err(Refusal::TooFewDomains { pool: spec.name, replicas: spec.replicas, found: fewest });
        }
        for replica in members.iter().flatten() {
            self.disk(replica.disk)?;
        }
        let id = PoolId(take(&mut self.next.pool, "pool")?);
        for (index, members) in members.into_iter().enumerate() {
            self.write(Record::Pg(PgConfig {
                pg: PgId { pool: id, index: index as u32 },
                generation: Generation { epoch: self.map.epoch, n: 1 },
                durability_epoch: 1,
                members,
                learners: Vec::new(),
                last_proposal: 0,
                forced: false,
                members_min: 0,
            }));
        }
        self.tell(
            "pool-created",
            format!(
                "Pool {} was created with {} placement groups of {} replicas.",
                spec.name, spec.pg_count, spec.replicas
            ),
        );
        self.write(Record::Pool(Pool {
            id,
            name: spec.name,
            replicas: spec.replicas,
            min_replicas: spec.min_replicas,
            failure_domain: spec.failure_domain,
            class: spec.class,
            pg_count: spec.pg_count,
            durable_writes: spec.durable_writes,
        }));
        Ok(Outcome::Pool(id))
    }

    pub(super) fn set_pool(&mut self, change: PoolChange) -> Result<Outcome, Refusal> {
        let old = self.pool_named(&change.pool)?;
        let new = Pool {
            replicas: change.replicas.unwrap_or(old.replicas),
            min_replicas: change.min_replicas.unwrap_or(old.min_replicas),
            failure_domain: change.failure_domain.unwrap_or(old.failure_domain),
            class: change.class.unwrap_or_else(|| old.class.clone()),
            durable_writes: change.durable_writes.unwrap_or(old.durable_writes),
            ..old.clone()
        };
        if change.min_replicas.is_none() && (1..old.min_replicas).contains(&new.replicas) {
            // The minimum is what guards against writes on too few copies: it is never lowered unasked.
            let (replicas, min_replicas) = (new.replicas, new.min_replicas);
            return Err(Refusal::ReplicasBelowMinimum { pool: change.pool, replicas, min_replicas });
        }
        check_replicas(new.replicas, new.min_replicas)?;
        if new.class != old.class {
            self.check_class(&new)?;
        }
        if new != *old {
            let class = if new.class.is_empty() { String::new() } else { format!(" on disks of class {}", new.class) };
            let text =
                format!("Pool {} now keeps {} replicas, at least {}{class}.", new.name, new.replicas, new.min_replicas);
            self.tell("pool-set", text);
            self.write(Record::Pool(new));
        }
        Ok(Outcome::Done)
    }

    /// All data is about to move there: the disks of the class must be able to hold every replica apart from the others.
    fn check_class(&self, pool: &Pool) -> Result<(), Refusal> {
        let in_use = |d: &&super::Disk| {
            let node = self.map.nodes.get(&d.node);
            is_usable(d.admin_state) && node.is_some_and(|n| n.admin_state != NodeAdminState::Removed)
        };
        let fits = |d: &&super::Disk| pool.class.is_empty() || d.class == pool.class;
        let disks = || self.map.disks.values().filter(in_use);
        let domains: BTreeSet<_> =
            disks().filter(fits).map(|d| domain_of(self.map, pool.failure_domain, d.id)).collect();
        if domains.len() >= pool.replicas as usize {
            return Ok(());
        }
        let known: BTreeSet<&str> = disks().map(|d| d.class.as_str()).filter(|c| !c.is_empty()).collect();
        Err(Refusal::ClassTooSmall {
            pool: pool.name.clone(),
            class: pool.class.clone(),
            replicas: pool.replicas,
            found: domains.len(),
            known: known.into_iter().collect::<Vec<_>>().join(", "),
        })
    }
}

fn check_replicas(replicas: u32, min_replicas: u32) -> Result<(), Refusal> {
    let ok = (1..=REPLICAS_MAX).contains(&replicas) && (1..=replicas).contains(&min_replicas);
    if ok { Ok(()) } else { Err(Refusal::ReplicasInvalid { replicas, min_replicas }) }
}
