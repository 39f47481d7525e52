//! The command line: subcommands thin over the admin API, the daemons' start, `dev` and `demo`.
//!
//! Invariants: an error is one sentence on stderr after `evenkeel: ` and exit code 1 (2 for wrong usage); stdout
//! carries results only, so that scripts can read it; a closed stdout is no error.
//!
//! Layout: `args` describes the options, `config` merges a daemon's file, `client` speaks HTTP, `out` prints; each
//! group of subcommands has its own file.
//!
//! Non-goals: deciding anything about the cluster. The coordinator decides; this shows and asks.

mod args;
mod certificate;
mod client;
mod cluster;
mod config;
mod daemons;
mod demo;
mod dev;
mod hash;
mod jobs;
mod out;
mod plan;
mod pools;
mod resync;
mod schema;
mod signals;
mod simulate;
mod status;
mod top;
mod watch;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory, Parser};

use args::{Cli, Command, CoordinatorCommand, LogFormat, MetaCommand, NodeCommand, OutputFormat, TokenCommand};
use client::{Access, Client};

use crate::api::types::{TokenCreate, TokenCreated};

/// Parses the command line, runs the command, and turns its outcome into an exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version come here too; a closed stdout is no error.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    match run(cli) {
        Ok(code) => code,
        Err(e) if e.downcast_ref::<out::StdoutClosed>().is_some() => ExitCode::SUCCESS,
        Err(e) => {
            out::note(format!("evenkeel: {}", one_sentence(&e)));
            ExitCode::FAILURE
        }
    }
}

/// The whole chain in one line; a cause that its effect's text already tells is not told twice.
fn one_sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(|c| c.to_string()) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    signals::die_with_parent()?;
    let session = Session { global: cli.global };
    session.start_log(matches!(
        &cli.command,
        Command::Coordinator(CoordinatorCommand::Run(_)) | Command::Node(NodeCommand::Run(_)) | Command::Gateway(_)
    ))?;
    if session.global.output == OutputFormat::Csv && !matches!(&cli.command, Command::Simulate(_)) {
        anyhow::bail!("-o csv is for `evenkeel simulate` alone; the other commands print tables or JSON");
    }
    match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Dev(args) => dev::run(args),
        Command::Init(args) => done(daemons::init(&args)),
        Command::Coordinator(CoordinatorCommand::Run(args)) => done(daemons::coordinator_command(&args)),
        Command::Node(NodeCommand::Run(args)) => done(daemons::node_command(&args, session.global.api.clone())),
        Command::Gateway(args) => done(daemons::gateway_command(&args, &session.global)),
        Command::Status => done(status::status(&session)),
        Command::Top(args) => done(top::top(&session, &args)),
        Command::Health(args) => status::health(&session, args),
        Command::Wait(args) => done(status::wait(&session, args)),
        Command::Events(args) => done(status::events(&session, args)),
        Command::Node(command) => done(cluster::node(&session, command)),
        Command::Disk(command) => done(cluster::disk(&session, command)),
        Command::Pg(command) => done(cluster::pg(&session, command)),
        Command::Pool(command) => done(pools::pool(&session, command)),
        Command::Volume(command) => done(pools::volume(&session, command)),
        Command::Plan(args) => done(plan::plan(&session, args)),
        Command::Simulate(args) => done(simulate::simulate(&session, &args)),
        Command::Meta(MetaCommand::Export) => done(plan::export(&session)),
        Command::Resync(command) => done(resync::resync(&session, command)),
        Command::Token(TokenCommand::Create { role, ttl }) => done(token_create(&session, role, ttl)),
        Command::Certificate(args) => done(certificate::certificate(&session, &args)),
        Command::Metrics(args) => done(metrics(&session, &args)),
        Command::Schema { command } => done(schema::schema(&command)),
        Command::Openapi => done(schema::openapi()),
        Command::Completions { shell } => done(completions(shell)),
        Command::Man { dir } => done(man(&dir)),
        Command::Hash { files } => done(hash::hash_files(&session, &files)),
    }
}

fn done(outcome: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    outcome.map(|()| ExitCode::SUCCESS)
}

/// The global options, and what every command makes of them.
struct Session {
    global: args::GlobalArgs,
}

impl Session {
    fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(Access::find(&self.global)?))
    }

    fn json(&self) -> bool {
        self.global.output == OutputFormat::Json
    }

    /// Prints the API's JSON as it is, or what `table` makes of the decoded value.
    fn show<T: serde::de::DeserializeOwned>(
        &self,
        client: &Client,
        text: &str,
        table: impl FnOnce(T) -> String,
    ) -> anyhow::Result<()> {
        if self.json() { out::line(text) } else { out::line(table(client.decode(text)?)) }
    }

    /// Prints one element of the API's list as JSON, or what `table` makes of it.
    fn show_one<T: serde::de::DeserializeOwned + serde::Serialize>(
        &self,
        one: &T,
        table: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        if self.json() { out::line(serde_json::to_string(one)?) } else { out::line(table(one)) }
    }

    /// Logs go to stderr; daemons log at `info`, commands at `warn` unless told otherwise.
    fn start_log(&self, daemon: bool) -> anyhow::Result<()> {
        let level = self.global.log_level.as_deref().unwrap_or(if daemon { "info" } else { "warn" });
        let filter = tracing_subscriber::EnvFilter::try_new(level)
            .with_context(|| format!("--log-level {level:?} is no level (error, warn, info, debug, trace)"))?;
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.global.log_format {
            LogFormat::Text => {
                use std::io::IsTerminal;
                log.with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()).init();
            }
            LogFormat::Json => log.json().flatten_event(true).init(),
        }
        Ok(())
    }
}

/// A dangerous command without `--yes`.
fn need_yes(yes: bool, what_happens: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    anyhow::bail!("{what_happens}; say --yes if that is wanted")
}

fn token_create(session: &Session, role: String, ttl: u64) -> anyhow::Result<()> {
    let client = session.client()?;
    let text = client.post_text("/v1/tokens", &TokenCreate { role, ttl_seconds: Some(ttl) })?;
    session.show(&client, &text, |created: TokenCreated| created.token)
}

fn metrics(session: &Session, args: &args::MetricsArgs) -> anyhow::Result<()> {
    if args.node.is_none() && !args.coordinator {
        return metrics_table(session);
    }
    let client = session.client()?;
    let text = match args.node.as_deref() {
        None => client.get_text("/metrics")?,
        Some(name) => {
            let node = cluster::find_node(&client, name)?;
            client.get_open(&node.admin_url, "/metrics")?
        }
    };
    out::line(text)
}

/// What there is, without a cluster.
fn metrics_table(session: &Session) -> anyhow::Result<()> {
    use crate::api::metrics::TABLE;
    if session.json() {
        return out::line(serde_json::to_string_pretty(TABLE)?);
    }
    let word = |w: &dyn std::fmt::Debug| format!("{w:?}").to_lowercase();
    let mut table = out::Table::new(&["METRIC", "TYPE", "UNIT", "LABELS", "OF", "WHAT"]);
    for row in TABLE {
        let daemons: Vec<String> = row.daemons.iter().map(|d| word(d)).collect();
        let unit = if row.unit.is_empty() { "-" } else { row.unit };
        let labels = if row.labels.is_empty() { "-".to_owned() } else { row.labels.join(",") };
        table.row([
            row.name.to_owned(),
            word(&row.kind),
            unit.to_owned(),
            labels,
            daemons.join(","),
            row.help.to_owned(),
        ]);
    }
    out::line(table.render(false))
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "evenkeel", &mut script);
    out::line(String::from_utf8(script)?)
}

fn man(dir: &std::path::Path) -> anyhow::Result<()> {
    let failed = || format!("writing the manual pages into {}", dir.display());
    std::fs::create_dir_all(dir).with_context(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line() {
        let error = anyhow::anyhow!("line 1\n  line 2").context("reading x");
        assert_eq!(one_sentence(&error), "reading x: line 1 line 2");
        let told = client::RequestApi::ReadFile {
            what: "token file",
            path: "/t".into(),
            source: std::io::Error::other("no light"),
        };
        assert_eq!(one_sentence(&told.into()), "can't read the token file /t: no light");
    }

    #[test]
    fn danger_needs_a_yes() {
        assert!(need_yes(true, "all is lost").is_ok());
        assert!(need_yes(false, "all is lost").unwrap_err().to_string().contains("--yes"));
    }

    #[test]
    fn every_command_has_a_manual_page() {
        let dir = tempfile::tempdir().unwrap();
        man(dir.path()).unwrap();
        for page in ["evenkeel.1", "evenkeel-status.1", "evenkeel-node-run.1", "evenkeel-certificate.1"] {
            let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
        }
    }

    #[test]
    fn completions_are_generated_for_every_shell() {
        use clap::ValueEnum;
        for shell in clap_complete::Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "evenkeel", &mut script);
            assert!(!script.is_empty());
        }
    }
}
