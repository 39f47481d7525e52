//! Texts of a trace.

use evenkeel::core::cluster::PgConfig;
use evenkeel::core::replica::{ClientReply, Input, Operation, PeerMessage, SessionMessage};

pub fn config(config: &PgConfig) -> String {
    let members: Vec<String> = config.members.iter().map(|m| format!("{}@{:x}", m.disk, m.boot.0 & 0xfff)).collect();
    let learners: Vec<String> =
        config.learners.iter().map(|l| format!("{}@{:x}", l.replica.disk, l.replica.boot.0 & 0xfff)).collect();
    format!("{}[{}|{}]", config.generation, members.join(" "), learners.join(" "))
}

pub fn reply(reply: &ClientReply) -> String {
    match reply {
        ClientReply::Data(data) => format!("data {}", data.len()),
        other => format!("{other:?}"),
    }
}

fn operation(op: &Operation) -> String {
    match op {
        Operation::Write { chunk, first_block, leaves, .. } => {
            format!("write {}:{first_block}+{}", chunk.index, leaves.len())
        }
        other => format!("{other:?}"),
    }
}

pub fn input(input: &Input) -> String {
    match input {
        Input::Config(c) => format!("map {}", config(c)),
        Input::Client(r) => format!("client {:x} conn {} {}", r.id, r.connection, clip(&format!("{:?}", r.op))),
        Input::Peer { from, message } => match message {
            PeerMessage::Replicate { generation, sequence, committed, op, .. } => {
                format!("{from}: replicate {generation} {sequence} committed {committed} {}", operation(op))
            }
            PeerMessage::NewConfig { config } => format!("{from}: new config {}", self::config(config)),
            PeerMessage::Session(SessionMessage::Forward { sequence, op, .. }) => {
                format!("{from}: forward {sequence} {}", operation(op))
            }
            other => format!("{from}: {}", clip(&format!("{other:?}"))),
        },
        Input::Disk { token, result } => format!("disk {token} {}", clip(&format!("{result:?}"))),
        other => clip(&format!("{other:?}")),
    }
}

pub fn clip(text: &str) -> String {
    text.chars().take(160).collect()
}
