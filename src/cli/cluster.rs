//! `node`, `disk` and `pg`: what the cluster consists of.

use anyhow::Context as _;

use crate::api::types::{
    DiskInfo, ForcePromoteReply, ForcePromoteRequest, NodeInfo, NodeStateSet, OkToStop, OkToStopRequest, PgInfo,
    PlanRequest, StopBlocked,
};
use crate::core::cluster::NodeAdminState;
use crate::core::ids::{DiskId, PgId};
use crate::core::units::HumanBytes;

use super::args::{DiskCommand, ForcePromoteArgs, NodeChangeArgs, NodeCommand, PgCommand};
use super::client::{Client, segment};
use super::out::{self, Table};
use super::{Session, need_yes, plan};

/// Reasons of unavailable PGs below their table: a screen.
const REASONS_SHOWN: usize = 20;

/// `node …`, apart from `run`.
pub fn node(session: &Session, command: NodeCommand) -> anyhow::Result<()> {
    let client = session.client()?;
    match command {
        NodeCommand::Run(_) => unreachable!("a daemon, started elsewhere"),
        NodeCommand::List => {
            let text = client.get_text("/v1/nodes")?;
            session.show(&client, &text, |nodes: Vec<NodeInfo>| nodes_table(&nodes))
        }
        NodeCommand::Show { name } => session.show_one(&find_node(&client, &name)?, show_node),
        NodeCommand::Drain(change) => {
            let text = "its replicas move away; `evenkeel wait clean` waits for the end";
            set_state(session, &client, change, NodeAdminState::Draining, text)
        }
        NodeCommand::Undrain(change) => {
            set_state(session, &client, change, NodeAdminState::Active, "it takes replicas again")
        }
        NodeCommand::Maintenance(change) => {
            let text = "nothing is re-replicated while it is down; `evenkeel node undrain` ends it";
            set_state(session, &client, change, NodeAdminState::Maintenance, text)
        }
        NodeCommand::OkToStop { names } => ok_to_stop(session, &client, names),
        NodeCommand::Remove { change, yes } => {
            let danger = format!("removing node {} is for good: its copies count no more", change.name);
            need_yes(yes || change.dry_run, &danger)?;
            set_state(session, &client, change, NodeAdminState::Removed, "its id is never used again")
        }
    }
}

/// Maintenance moves nothing; what counts is whether the node may be down.
fn maintenance_dry_run(session: &Session, client: &Client, name: String) -> anyhow::Result<()> {
    let answer: OkToStop = client.post("/v1/ok-to-stop", &OkToStopRequest { nodes: vec![name.clone()] })?;
    session.show_one(&answer, |a| {
        let then = match a.pgs_blocked {
            0 => format!("{} placement groups serve on without it", a.pgs_touched),
            n => format!("{n} of {} placement groups wait while it is down: make them whole first", a.pgs_touched),
        };
        format!("dry run, nothing was changed; nothing would move, and with {name} down {then}")
    })
}

fn ok_to_stop(session: &Session, client: &Client, nodes: Vec<String>) -> anyhow::Result<()> {
    let all = nodes.join(", ");
    let answer: OkToStop = client.post("/v1/ok-to-stop", &OkToStopRequest { nodes })?;
    if session.json() || answer.ok {
        let told = |a: &OkToStop| format!("yes: {} placement groups serve on without {all}", a.pgs_touched);
        session.show_one(&answer, told)?;
    }
    let shown = |b: &StopBlocked| format!("{} ({} of at least {})", b.pg, b.live_after, b.min_replicas);
    let first: Vec<String> = answer.blocked.iter().take(8).map(shown).collect();
    anyhow::ensure!(
        answer.ok,
        "without {all} {} placement groups would have too few copies to serve: {}",
        answer.pgs_blocked,
        first.join(", ")
    );
    Ok(())
}

/// The node of that name.
pub fn find_node(client: &Client, name: &str) -> anyhow::Result<NodeInfo> {
    let nodes = client.nodes()?;
    let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
    nodes
        .into_iter()
        .find(|n| n.name == name)
        .with_context(|| format!("no node is named {name:?}; there are: {}", listing(&names)))
}

fn set_state(
    session: &Session,
    client: &Client,
    change: NodeChangeArgs,
    state: NodeAdminState,
    consequence: &str,
) -> anyhow::Result<()> {
    let NodeChangeArgs { name, dry_run } = change;
    let path = format!("/v1/nodes/{}/state", segment(&name));
    let text = client.post_text(&path, &NodeStateSet { state, dry_run })?;
    if !dry_run {
        return session
            .show(client, &text, |node: NodeInfo| format!("node {} is {}: {consequence}", node.name, node.state));
    }
    // It would be accepted; and then?
    match state {
        NodeAdminState::Maintenance => maintenance_dry_run(session, client, name),
        NodeAdminState::Active => {
            plan::dry_run(session, client, &PlanRequest { undrain_node: vec![name], ..PlanRequest::default() })
        }
        NodeAdminState::Draining | NodeAdminState::Removed => {
            plan::dry_run(session, client, &PlanRequest { remove_node: vec![name], ..PlanRequest::default() })
        }
    }
}

fn nodes_table(nodes: &[NodeInfo]) -> String {
    let mut table =
        Table::new(&["NODE", "ID", "STATE", "ADDRESS", "ZONE", "RACK", "RELEASE", ">DISKS", ">USED", ">CAPACITY"]);
    for node in nodes {
        table.row([
            node.name.clone(),
            node.id.to_string(),
            node.state.clone(),
            node.addr.clone(),
            node.zone.clone(),
            node.rack.clone(),
            node.release.clone(),
            node.disks.len().to_string(),
            HumanBytes(node.disks.iter().map(|d| d.used_bytes).sum()).to_string(),
            HumanBytes(node.disks.iter().map(|d| d.capacity_bytes).sum()).to_string(),
        ]);
    }
    table.render(out::colour())
}

fn show_node(node: &NodeInfo) -> String {
    let mut text = format!(
        "node     {} ({})\nstate    {}\naddress  {}\nadmin    {}\nprocess  {}\nrelease  {}\n",
        node.name, node.id, node.state, node.addr, node.admin_url, node.pid, node.release
    );
    if !node.zone.is_empty() || !node.rack.is_empty() {
        text += &format!("place    zone {:?}, rack {:?}\n", node.zone, node.rack);
    }
    text + "\n" + &disks_table(&node.disks)
}

/// `disk …`.
pub fn disk(session: &Session, command: DiskCommand) -> anyhow::Result<()> {
    let client = session.client()?;
    let text = client.get_text("/v1/disks")?;
    match command {
        DiskCommand::List => session.show(&client, &text, |disks: Vec<DiskInfo>| disks_table(&disks)),
        DiskCommand::Show { id } => {
            let wanted: DiskId = id.parse()?;
            let disks: Vec<DiskInfo> = client.decode(&text)?;
            let ids: Vec<String> = disks.iter().map(|d| d.id.to_string()).collect();
            let disk = disks
                .iter()
                .find(|d| d.id == wanted)
                .with_context(|| format!("there is no disk {wanted}; there are: {}", listing(&ids)))?;
            session.show_one(disk, |d| disks_table(std::slice::from_ref(d)))
        }
    }
}

fn disks_table(disks: &[DiskInfo]) -> String {
    let titles =
        ["DISK", "NODE", "STATE", "CLASS", ">USED", ">CAPACITY", ">FULL", ">PG REPLICAS", ">PRIMARIES", "PATH"];
    let mut table = Table::new(&titles);
    for disk in disks {
        table.row([
            disk.id.to_string(),
            disk.node.clone(),
            disk.state.clone(),
            disk.class.clone(),
            HumanBytes(disk.used_bytes).to_string(),
            HumanBytes(disk.capacity_bytes).to_string(),
            out::percent(disk.used_bytes, disk.capacity_bytes),
            disk.pg_replicas.to_string(),
            disk.primaries.to_string(),
            disk.path.clone(),
        ]);
    }
    table.render(out::colour())
}

/// `pg …`.
pub fn pg(session: &Session, command: PgCommand) -> anyhow::Result<()> {
    let client = session.client()?;
    match command {
        PgCommand::List { state: None } => {
            let text = client.get_text("/v1/pgs")?;
            session.show(&client, &text, |pgs: Vec<PgInfo>| pgs_table(&pgs))
        }
        PgCommand::List { state: Some(state) } => {
            let mut pgs: Vec<PgInfo> = client.get("/v1/pgs")?;
            pgs.retain(|pg| if state == "misplaced" { pg.misplaced } else { pg.state == state });
            session.show_one(&pgs, |pgs| pgs_table(pgs))
        }
        PgCommand::Show { id } => {
            let id: PgId = id.parse()?;
            let text = client.get_text(&format!("/v1/pgs/{id}"))?;
            session.show(&client, &text, |pg: PgInfo| pgs_table(&[pg]))
        }
        PgCommand::ForcePromote(args) => force_promote(session, &client, &args),
    }
}

/// Fails when nothing was done, so that no script takes a preview for the deed.
fn force_promote(session: &Session, client: &Client, args: &ForcePromoteArgs) -> anyhow::Result<()> {
    let id: PgId = args.id.parse()?;
    let disk = args.disk.as_deref().map(str::parse).transpose()?;
    let request = ForcePromoteRequest { disk, accept_data_loss: args.accept_data_loss };
    let text = client.post_text(&format!("/v1/pgs/{id}/force-promote"), &request)?;
    let reply: ForcePromoteReply = client.decode(&text)?;
    session.show(client, &text, |reply: ForcePromoteReply| render_force(&reply))?;
    anyhow::ensure!(reply.done, "nothing was changed; say --accept-data-loss if that is wanted");
    Ok(())
}

fn render_force(reply: &ForcePromoteReply) -> String {
    let then = if reply.done { "leads" } else { "would lead" };
    let mut text =
        format!("PG {}: disk {} of node {} {then} alone\nloss: {}\n", reply.pg, reply.disk, reply.node, reply.loss);
    if reply.done {
        text += &format!("generation {} before, {} now\n", reply.generation_before, reply.generation);
    }
    if !reply.learners.is_empty() {
        let verb = if reply.done { "is" } else { "would be" };
        text += &format!("{verb} copied to: {}\n", join(reply.learners.iter().copied()));
    }
    for warning in &reply.warnings {
        text += &format!("- {warning}\n");
    }
    let mut table = Table::new(&["COPY", "NODE", "GENERATION", "COMPLETE", ">FLUSH MARK", "LOSS"]);
    for c in &reply.candidates {
        table.row([
            c.disk.to_string(),
            c.node.clone(),
            c.generation.to_string(),
            if c.complete { "yes" } else { "no" }.to_owned(),
            c.flush_mark.to_string(),
            c.loss.clone(),
        ]);
    }
    text + "\n" + &table.render(out::colour())
}

fn pgs_table(pgs: &[PgInfo]) -> String {
    let mut table = Table::new(&["PG", "POOL", "STATE", "GENERATION", "MEMBERS", "MISSING", "LEARNERS", ">BYTES"]);
    for pg in pgs {
        let state = if pg.misplaced && pg.state == "clean" { "misplaced" } else { &pg.state };
        table.row([
            pg.id.clone(),
            pg.pool.clone(),
            state.to_owned(),
            pg.generation.to_string(),
            join(pg.members.iter().map(|m| m.disk)),
            join(pg.missing.iter().copied()),
            join(pg.learners.iter().copied()),
            HumanBytes(pg.bytes).to_string(),
        ]);
    }
    let mut text = table.render(out::colour());
    // What brings back those that are not served.
    let down: Vec<&PgInfo> = pgs.iter().filter(|pg| !pg.reason.is_empty()).collect();
    for (i, pg) in down.iter().take(REASONS_SHOWN).enumerate() {
        text += &format!("{}{}: {}\n", if i == 0 { "\n" } else { "" }, pg.id, pg.reason);
    }
    if down.len() > REASONS_SHOWN {
        text += &format!("… and {} more (`evenkeel pg show` says it of each)\n", down.len() - REASONS_SHOWN);
    }
    text
}

fn join(disks: impl Iterator<Item = DiskId>) -> String {
    disks.map(|d| d.to_string()).collect::<Vec<_>>().join(",")
}

/// Names for an error message; a long list is cut.
fn listing(names: &[String]) -> String {
    const SHOWN: usize = 16;
    match names {
        [] => "none".to_owned(),
        _ if names.len() > SHOWN => format!("{}, and {} more", names[..SHOWN].join(", "), names.len() - SHOWN),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::Replica;
    use crate::core::ids::{BootId, Generation};

    #[test]
    fn a_misplaced_pg_is_shown_as_such() {
        let pg = PgInfo {
            id: "1.2".into(),
            pool: "default".into(),
            state: "clean".into(),
            misplaced: true,
            generation: Generation { epoch: 1, n: 4 },
            members: vec![Replica { disk: DiskId(3), boot: BootId(1) }, Replica { disk: DiskId(1), boot: BootId(1) }],
            missing: vec![DiskId(1)],
            learners: vec![],
            bytes: 4 << 20,
            reason: String::new(),
        };
        let text = pgs_table(&[pg]);
        assert!(text.contains("misplaced") && text.contains("d3,d1") && text.contains("4 MiB"), "{text}");
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..20).map(|i| format!("n{i}")).collect();
        assert!(listing(&names).ends_with("and 4 more"));
        assert_eq!(listing(&[]), "none");
    }
}
