//! `pool` and `volume`.

use crate::api::types::{
    Done, Knob, PlanRequest, PoolCreate, PoolInfo, PoolSet, VolumeCreate, VolumeInfo, VolumeQosSet, VolumeRedundancy,
    VolumeSet,
};
use crate::core::cluster::FailureDomain;
use crate::core::ids::DiskId;
use crate::core::units::{CHUNK_BYTES, HumanBytes, SECTOR_BYTES};

use super::args::{PoolCommand, PoolCreateArgs, PoolSetArgs, VolumeCommand, VolumeQosArgs};
use super::client::{Client, RequestApi, segment};
use super::hash::Hashed;
use super::out::{self, Table};
use super::{Session, daemons, need_yes, plan};

/// `pool …`.
pub fn pool(session: &Session, command: PoolCommand) -> anyhow::Result<()> {
    let client = session.client()?;
    match command {
        PoolCommand::Create(args) => create_pool(session, &client, args),
        PoolCommand::List => {
            let text = client.get_text("/v1/pools")?;
            session.show(&client, &text, |pools: Vec<PoolInfo>| pools_table(&pools))
        }
        PoolCommand::Show { name } => {
            let text = client.get_text(&pool_path(&name))?;
            session.show(&client, &text, |pool: PoolInfo| pools_table(&[pool]))
        }
        PoolCommand::Set(args) => {
            let question = pool_question(&args);
            let change = PoolSet {
                replicas: args.change.replicas,
                min_replicas: args.change.min_replicas,
                failure_domain: args.change.failure_domain,
                class: args.change.class,
                durability: args.change.durability,
                dry_run: args.dry_run,
            };
            let text = client.patch_text(&pool_path(&args.name), &change)?;
            if args.dry_run {
                return plan::dry_run(session, &client, &question);
            }
            session.show(&client, &text, |pool: PoolInfo| format!("pool {} is now {}", pool.name, rule(&pool)))
        }
        PoolCommand::Delete { name, if_exists, dry_run: true, .. } => {
            let found = client.get(&pool_path(&name));
            would_delete(session, &format!("pool {name}"), found, if_exists, |pool: &PoolInfo| match pool.volumes {
                0 => format!("pool {} would be deleted; it is empty", pool.name),
                n => format!("pool {} would not be deleted: it has {n} volumes", pool.name),
            })
        }
        PoolCommand::Delete { name, yes, if_exists, .. } => {
            need_yes(yes, &format!("pool {name} would be deleted"))?;
            delete(session, &client, &pool_path(&name), if_exists, &format!("there is no pool {name}"))
        }
    }
}

/// What of a change of a pool moves data.
fn pool_question(args: &PoolSetArgs) -> PlanRequest {
    let pair = |value: String| vec![format!("{}={value}", args.name)];
    PlanRequest {
        replicas: args.change.replicas.map(|n| pair(n.to_string())).unwrap_or_default(),
        failure_domain: args.change.failure_domain.map(|d| pair(domain(d).to_owned())).unwrap_or_default(),
        class: args.change.class.clone().map(pair).unwrap_or_default(),
        ..PlanRequest::default()
    }
}

/// `--dry-run` of a deletion.
fn would_delete<T>(
    session: &Session,
    what: &str,
    found: Result<T, RequestApi>,
    if_exists: bool,
    told: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let message = match found {
        Ok(found) => format!("dry run, nothing was changed; {}", told(&found)),
        Err(e) if if_exists && e.is_not_found() => format!("there is no {what}; nothing to do"),
        Err(e) => return Err(e.into()),
    };
    session.show_one(&Done { message }, |d| d.message.clone())
}

fn create_pool(session: &Session, client: &Client, args: PoolCreateArgs) -> anyhow::Result<()> {
    let request = PoolCreate {
        name: args.name.clone(),
        replicas: args.replicas,
        min_replicas: args.min_replicas,
        failure_domain: args.failure_domain,
        class: args.class,
        pg_count: args.pg_count,
        durability: args.durability,
    };
    match client.post_text("/v1/pools", &request) {
        Ok(text) => session.show(client, &text, |pool: PoolInfo| format!("made pool {}: {}", pool.name, rule(&pool))),
        Err(e) if e.is_conflict() && args.if_not_exists => {
            // There is none: it can't be made for another reason, as too few disks.
            let Ok(text) = client.get_text(&pool_path(&args.name)) else { return Err(e.into()) };
            session
                .show(client, &text, |pool: PoolInfo| format!("pool {} is there already: {}", pool.name, rule(&pool)))
        }
        Err(e) => Err(e.into()),
    }
}

fn rule(pool: &PoolInfo) -> String {
    format!(
        "{} replicas (IO waits below {}), failure domain {}, disks of class {}, {} PGs, durability {}",
        pool.replicas,
        pool.min_replicas,
        domain(pool.failure_domain),
        if pool.class.is_empty() { "any" } else { &pool.class },
        pool.pg_count,
        pool.durability
    )
}

fn domain(domain: FailureDomain) -> &'static str {
    match domain {
        FailureDomain::Disk => "disk",
        FailureDomain::Node => "node",
        FailureDomain::Rack => "rack",
        FailureDomain::Zone => "zone",
        FailureDomain::Release => "release",
    }
}

fn pools_table(pools: &[PoolInfo]) -> String {
    let mut table =
        Table::new(&["POOL", "ID", ">REPLICAS", ">MIN", "DOMAIN", "CLASS", ">PGS", "DURABILITY", ">VOLUMES"]);
    for pool in pools {
        table.row([
            pool.name.clone(),
            pool.id.to_string(),
            pool.replicas.to_string(),
            pool.min_replicas.to_string(),
            domain(pool.failure_domain).to_owned(),
            if pool.class.is_empty() { "any".to_owned() } else { pool.class.clone() },
            pool.pg_count.to_string(),
            pool.durability.clone(),
            pool.volumes.to_string(),
        ]);
    }
    table.render(out::colour())
}

/// `volume …`.
pub fn volume(session: &Session, command: VolumeCommand) -> anyhow::Result<()> {
    let client = session.client()?;
    match command {
        VolumeCommand::Create { name, size, pool, priority, qos, if_not_exists } => {
            check_size(size)?;
            let request = VolumeCreate { name: name.clone(), size_bytes: size, pool, priority, qos: qos_change(qos) };
            let (text, word) = match client.post_text("/v1/volumes", &request) {
                Ok(text) => (text, "made"),
                Err(e) if e.is_conflict() && if_not_exists => {
                    let Ok(text) = client.get_text(&volume_path(&name)) else { return Err(e.into()) };
                    let there: VolumeInfo = client.decode(&text)?;
                    anyhow::ensure!(
                        there.size_bytes == size,
                        "volume {name} is there already with {} bytes, not {size}; `evenkeel volume resize` changes it",
                        there.size_bytes
                    );
                    (text, "already there:")
                }
                Err(e) => return Err(e.into()),
            };
            session.show(&client, &text, |v: VolumeInfo| {
                format!(
                    "{word} volume {}: {} in pool {}, on {} PGs",
                    v.name,
                    HumanBytes(v.size_bytes),
                    v.pool,
                    v.pgs.total
                )
            })
        }
        VolumeCommand::List => {
            let text = client.get_text("/v1/volumes")?;
            session.show(&client, &text, |volumes: Vec<VolumeInfo>| volumes_table(&volumes))
        }
        VolumeCommand::Show { name } => {
            let text = client.get_text(&volume_path(&name))?;
            session.show(&client, &text, |volume: VolumeInfo| show_volume(&volume))
        }
        VolumeCommand::Resize { name, size, dry_run: true, .. } => resize_dry_run(session, &client, &name, size),
        VolumeCommand::Resize { name, size, yes, .. } => resize(session, &client, &name, size, yes),
        VolumeCommand::Set(args) => {
            let change = VolumeSet { priority: args.priority, qos: qos_change(args.qos), ..VolumeSet::default() };
            let text = client.patch_text(&volume_path(&args.name), &change)?;
            session.show(&client, &text, |v: VolumeInfo| {
                format!("volume {} has priority {}, {}", v.name, v.priority, limits(&v))
            })
        }
        VolumeCommand::Delete { name, if_exists, dry_run: true, .. } => {
            let found = client.get(&volume_path(&name));
            would_delete(session, &format!("volume {name}"), found, if_exists, |v: &VolumeInfo| match &v.attached_to {
                Some(gateway) => format!("volume {} would not be deleted: gateway {gateway} has it", v.name),
                None => format!("volume {} and its {} would be deleted", v.name, HumanBytes(v.size_bytes)),
            })
        }
        VolumeCommand::Delete { name, yes, if_exists, .. } => {
            need_yes(yes, &format!("volume {name} and its data would be deleted"))?;
            delete(session, &client, &volume_path(&name), if_exists, &format!("there is no volume {name}"))
        }
        VolumeCommand::Hash { names } => hash_volumes(session, &client, &names),
    }
}

fn resize(session: &Session, client: &Client, name: &str, size: u64, yes: bool) -> anyhow::Result<()> {
    check_size(size)?;
    let before: VolumeInfo = client.get(&volume_path(name))?;
    if size < before.size_bytes {
        let lost = HumanBytes(before.size_bytes - size);
        need_yes(yes, &format!("shrinking volume {name} drops its last {lost}"))?;
    }
    let change = VolumeSet { size_bytes: Some(size), allow_shrink: yes, ..VolumeSet::default() };
    let text = client.patch_text(&volume_path(name), &change)?;
    session.show(client, &text, |v: VolumeInfo| {
        format!("volume {} has {} (before: {})", v.name, HumanBytes(v.size_bytes), HumanBytes(before.size_bytes))
    })
}

fn resize_dry_run(session: &Session, client: &Client, name: &str, size: u64) -> anyhow::Result<()> {
    check_size(size)?;
    let change = VolumeSet { size_bytes: Some(size), dry_run: true, ..VolumeSet::default() };
    let now: VolumeInfo = client.patch(&volume_path(name), &change)?;
    let [before, after] = [now.size_bytes, size].map(HumanBytes);
    let message = format!("dry run, nothing was changed; volume {name} would have {after} (now: {before})");
    session.show_one(&Done { message }, |d| d.message.clone())
}

fn hash_volumes(session: &Session, client: &Client, names: &[String]) -> anyhow::Result<()> {
    let mut hashes = Vec::new();
    for name in names {
        // Asked first, so that an unknown volume is the API's sentence, at once.
        client.get_text(&volume_path(name))?;
        let hash = hex::encode(daemons::volume_hash(client.access(), name)?);
        if session.json() {
            hashes.push(Hashed { hash, name: name.clone() });
        } else {
            out::line(format!("{hash}  {name}"))?;
        }
    }
    if session.json() { out::line(serde_json::to_string(&hashes)?) } else { Ok(()) }
}

fn delete(session: &Session, client: &Client, path: &str, if_exists: bool, absent: &str) -> anyhow::Result<()> {
    match client.delete_text(path) {
        Ok(text) => session.show(client, &text, |done: Done| done.message),
        Err(e) if if_exists && e.is_not_found() => {
            let done = Done { message: format!("{absent}; nothing to do") };
            session.show_one(&done, |d| d.message.clone())
        }
        Err(e) => Err(e.into()),
    }
}

fn qos_change(args: VolumeQosArgs) -> VolumeQosSet {
    VolumeQosSet {
        iops_limit: args.iops_limit.map(Knob::Text),
        iops_burst: args.iops_burst.map(Knob::Text),
        bandwidth_limit: args.bandwidth_limit,
        bandwidth_burst: args.bandwidth_burst,
        share: args.share,
    }
}

fn limits(v: &VolumeInfo) -> String {
    let burst = |burst: Option<String>| burst.map_or(String::new(), |burst| format!(" (in bursts of {burst})"));
    let iops = v.iops_limit.map_or("no IOPS limit".to_owned(), |n| {
        format!("{} IOPS at most{}", out::thousands(n), burst(v.iops_burst.map(out::thousands)))
    });
    let rate = v.bandwidth_limit_bytes_per_sec.map_or("no bandwidth limit".to_owned(), |rate| {
        let burst = burst(v.bandwidth_burst_bytes.map(|n| HumanBytes(n).to_string()));
        format!("{}/s at most{burst}", HumanBytes(rate))
    });
    format!("{iops}, {rate}, share {}", v.share)
}

/// Checked here too, so that the sentence can name the nearest size that works.
fn check_size(size: u64) -> anyhow::Result<()> {
    anyhow::ensure!(size > 0, "a volume can't have 0 bytes");
    let rest = size % SECTOR_BYTES;
    anyhow::ensure!(
        rest == 0,
        "a volume's size is a multiple of {SECTOR_BYTES} bytes: not {size}, but {} or {}",
        size - rest,
        size - rest + SECTOR_BYTES
    );
    Ok(())
}

fn volumes_table(volumes: &[VolumeInfo]) -> String {
    let mut table = Table::new(&["VOLUME", "ID", "POOL", ">SIZE", "STATE", ">PRIORITY", "ATTACHED TO"]);
    for v in volumes {
        table.row([
            v.name.clone(),
            v.id.to_string(),
            v.pool.clone(),
            HumanBytes(v.size_bytes).to_string(),
            v.state.clone(),
            v.priority.to_string(),
            v.attached_to.clone().unwrap_or_default(),
        ]);
    }
    table.render(out::colour())
}

fn show_volume(v: &VolumeInfo) -> String {
    let disks: Vec<String> = v.disks.iter().map(|d| d.to_string()).collect();
    let stripes: Vec<String> = v
        .stripes
        .iter()
        .map(|s| format!("from {} on {} PGs", HumanBytes(u64::from(s.first_chunk) * CHUNK_BYTES), s.pgs.len()))
        .collect();
    let mut text = format!(
        "volume    {} ({})\npool      {}\nsize      {} ({} bytes)\nstate     {}\nattached  {}\npriority  {}\nlimits    {}\n\
         PGs       {}: {} clean, {} degraded, {} unavailable\nlayout    {}\ndisks     {}\n",
        v.name,
        v.id,
        v.pool,
        HumanBytes(v.size_bytes),
        v.size_bytes,
        if out::colour() { out::paint_state(&v.state) } else { v.state.clone() },
        v.attached_to.as_deref().unwrap_or("no"),
        v.priority,
        limits(v),
        v.pgs.total,
        v.pgs.clean,
        v.pgs.degraded,
        v.pgs.unavailable,
        stripes.join(", "),
        disks.join(" ")
    );
    if let Some(redundancy) = &v.redundancy {
        text += &show_redundancy(redundancy);
    }
    text
}

fn show_redundancy(r: &VolumeRedundancy) -> String {
    let part = |n: u64, bytes: u64, word: &str| format!("{} {word} ({})", out::thousands(n), HumanBytes(bytes));
    let mut text = format!(
        "chunks    {}: {}, {}, {}\n",
        out::thousands(r.chunks.total),
        part(r.chunks.clean, r.bytes.clean, "clean"),
        part(r.chunks.degraded, r.bytes.degraded, "degraded"),
        part(r.chunks.unavailable, r.bytes.unavailable, "unavailable")
    );
    if r.chunks.misplaced > 0 {
        text += &format!("moving    {}\n", part(r.chunks.misplaced, r.bytes.misplaced, "of the clean ones"));
    }
    if let Some(span) = &r.eta_seconds {
        text += &format!("clean in  {}\n", super::plan::span(span));
    } else if !r.waits_for.is_empty() {
        text += &format!("waits     {}\n", r.waits_for);
    }
    let mut table = Table::new(&["PG", "STATE", ">CHUNKS", ">BYTES", "DISKS", "NO ANSWER", "COPYING TO"]);
    let join = |disks: &[DiskId]| disks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    for pg in &r.pgs {
        let copying = pg.copying.iter().map(|(disk, part)| format!("{disk} {:.0} %", part * 100.0));
        table.row([
            pg.pg.clone(),
            if pg.misplaced { "misplaced".to_owned() } else { pg.state.clone() },
            out::thousands(pg.chunks),
            HumanBytes(pg.bytes).to_string(),
            join(&pg.disks),
            join(&pg.missing),
            copying.collect::<Vec<_>>().join(" "),
        ]);
    }
    text + "\n" + &table.render(out::colour())
}

fn pool_path(name: &str) -> String {
    format!("/v1/pools/{}", segment(name))
}

fn volume_path(name: &str) -> String {
    format!("/v1/volumes/{}", segment(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::VolumePg;

    #[test]
    fn a_volume_shows_what_is_safe_and_when_all_will_be() {
        let mut r = VolumeRedundancy::default();
        for (state, misplaced, n) in [("clean", true, 1200), ("degraded", false, 30), ("unavailable", false, 2)] {
            r.chunks.add(state, misplaced, n);
            r.bytes.add(state, misplaced, n * CHUNK_BYTES);
        }
        r.eta_seconds = Some(crate::core::placement::Span { low: 60.0, likely: 70.0, high: 90.0 });
        r.pgs = vec![VolumePg { pg: "1.7".into(), copying: vec![(DiskId(4), 0.257)], ..VolumePg::default() }];
        let text = show_redundancy(&r);
        for part in ["1,232: 1,200 clean (4.7 GiB), 30 degraded (120 MiB), 2 unavailable", "1 min 10 s", "d4 26 %"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        r.eta_seconds = None;
        r.waits_for = "the operator has paused it".into();
        assert!(show_redundancy(&r).contains("waits     the operator"));
    }

    #[test]
    fn a_wrong_size_is_answered_with_the_next_right_ones() {
        assert!(check_size(512).is_ok() && check_size(4 << 30).is_ok());
        let error = check_size(1000).unwrap_err().to_string();
        assert!(error.contains("512 or 1024"), "{error}");
        assert!(check_size(0).is_err());
    }
}
