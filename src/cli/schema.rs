//! `schema` and `openapi`: the JSON that commands print and the API speaks, described.
//!
//! Invariant: every command stands in exactly one of [`OUTPUTS`] and [`WITHOUT_JSON`]; a test walks the command line.

use serde_json::{Map, Value};

use crate::api::openapi::{answer_schema, document, either_schema};
use crate::api::types::{
    ClusterFileNode, DiskInfo, Done, Event, ForcePromoteReply, JobChanged, JobInfo, NodeInfo, OkToStop, PgInfo,
    PlanReply, PoolInfo, ResyncInfo, Status, TokenCreated, VolumeInfo,
};
use crate::core::placement::MapFile;
use crate::core::simulate::Report;

use super::{certificate, hash, out, status, watch};

/// A command, and what describes its output.
type Output = (&'static str, fn() -> Value);

/// Each command with JSON output, and what it prints; of changes that have `--dry-run` with another answer, the second is that.
const OUTPUTS: &[Output] = &[
    ("certificate", answer_schema::<certificate::Issued>),
    ("dev add-node", answer_schema::<ClusterFileNode>),
    ("disk list", answer_schema::<Vec<DiskInfo>>),
    ("disk show", answer_schema::<DiskInfo>),
    // All at once, or with `--follow` one a line.
    ("events", either_schema::<Vec<Event>, Event>),
    ("hash", answer_schema::<Vec<hash::Hashed>>),
    ("health", answer_schema::<status::Health>),
    ("meta export", answer_schema::<MapFile>),
    ("metrics", answer_schema::<Vec<crate::api::metrics::Row>>),
    ("node drain", either_schema::<NodeInfo, PlanReply>),
    ("node list", answer_schema::<Vec<NodeInfo>>),
    ("node maintenance", either_schema::<NodeInfo, OkToStop>),
    ("node ok-to-stop", answer_schema::<OkToStop>),
    ("node remove", either_schema::<NodeInfo, PlanReply>),
    ("node show", answer_schema::<NodeInfo>),
    ("node undrain", either_schema::<NodeInfo, PlanReply>),
    ("pg force-promote", answer_schema::<ForcePromoteReply>),
    ("pg list", answer_schema::<Vec<PgInfo>>),
    ("pg show", answer_schema::<PgInfo>),
    ("plan", answer_schema::<PlanReply>),
    ("pool create", answer_schema::<PoolInfo>),
    ("pool delete", answer_schema::<Done>),
    ("pool list", answer_schema::<Vec<PoolInfo>>),
    ("pool set", either_schema::<PoolInfo, PlanReply>),
    ("pool show", answer_schema::<PoolInfo>),
    ("resync cancel", answer_schema::<JobChanged>),
    // With `--job` the one.
    ("resync jobs", either_schema::<Vec<JobInfo>, JobInfo>),
    // The throttle; with `--job` what became of the job.
    ("resync pause", either_schema::<ResyncInfo, JobChanged>),
    ("resync resume", either_schema::<ResyncInfo, JobChanged>),
    ("resync set", answer_schema::<ResyncInfo>),
    ("resync status", answer_schema::<ResyncInfo>),
    ("resync watch", answer_schema::<watch::Line<'static>>),
    ("simulate", answer_schema::<Report>),
    ("status", answer_schema::<Status>),
    ("token create", answer_schema::<TokenCreated>),
    ("volume create", answer_schema::<VolumeInfo>),
    ("volume delete", answer_schema::<Done>),
    ("volume hash", answer_schema::<Vec<hash::Hashed>>),
    ("volume list", answer_schema::<Vec<VolumeInfo>>),
    ("volume resize", either_schema::<VolumeInfo, Done>),
    ("volume set", answer_schema::<VolumeInfo>),
    ("volume show", answer_schema::<VolumeInfo>),
];

/// Daemons and tools: what they print is text, a script, or itself a description.
#[cfg(test)]
const WITHOUT_JSON: &[&str] = &[
    "completions",
    "coordinator run",
    "demo",
    "dev kill-node",
    "dev run",
    "dev start-node",
    "gateway",
    "init",
    "man",
    "node run",
    "openapi",
    "schema",
    "top",
    "wait",
];

/// `schema [COMMAND…]`: of one command, or by command of all whose names begin so.
pub fn schema(words: &[String]) -> anyhow::Result<()> {
    let wanted = words.join(" ");
    let found = OUTPUTS.iter().find(|(name, _)| *name == wanted);
    let value = match found {
        Some((_, schema)) => schema(),
        None => {
            let below =
                |name: &str| wanted.is_empty() || name.strip_prefix(&wanted).is_some_and(|r| r.starts_with(' '));
            let all: Map<String, Value> = OUTPUTS
                .iter()
                .filter(|(name, _)| below(name))
                .map(|(name, schema)| ((*name).to_owned(), schema()))
                .collect();
            anyhow::ensure!(
                !all.is_empty(),
                "no command {wanted:?} prints JSON; `evenkeel schema` without a name shows all that do"
            );
            Value::Object(all)
        }
    };
    out::line(serde_json::to_string_pretty(&value)?)
}

/// `openapi`.
pub fn openapi() -> anyhow::Result<()> {
    out::line(serde_json::to_string_pretty(&document())?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn leaves(command: &clap::Command, path: &str, out: &mut Vec<String>) {
        for sub in command.get_subcommands() {
            let name = if path.is_empty() { sub.get_name().to_owned() } else { format!("{path} {}", sub.get_name()) };
            if sub.has_subcommands() { leaves(sub, &name, out) } else { out.push(name) }
        }
    }

    #[test]
    fn every_command_has_a_schema_or_no_json() {
        let mut commands = Vec::new();
        leaves(&super::super::Cli::command(), "", &mut commands);
        commands.sort();
        let mut known: Vec<&str> = OUTPUTS.iter().map(|(name, _)| *name).chain(WITHOUT_JSON.iter().copied()).collect();
        known.sort_unstable();
        assert_eq!(commands, known);
    }

    /// Each field, wherever it stands in a schema.
    fn check_fields(at: &str, schema: &Value) {
        match schema {
            Value::Object(keys) => {
                for (field, described) in keys.get("properties").and_then(Value::as_object).into_iter().flatten() {
                    assert!(described["description"].is_string(), "{at}: {field} says nothing");
                }
                keys.iter().for_each(|(key, value)| check_fields(&format!("{at}/{key}"), value));
            }
            Value::Array(items) => items.iter().for_each(|i| check_fields(at, i)),
            _ => {}
        }
    }

    #[test]
    fn every_schema_is_valid_and_says_what_each_field_means() {
        for (name, schema) in OUTPUTS {
            let schema = schema();
            assert!(jsonschema::meta::is_valid(&schema), "{name}");
            jsonschema::validator_for(&schema).unwrap_or_else(|e| panic!("{name}: {e}"));
            check_fields(name, &schema);
        }
    }
}
