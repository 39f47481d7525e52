//! Every command's help has examples, and each example is a command line that exists.

use clap::{Command, CommandFactory, Parser};

use super::Cli;

/// Each command that has no subcommands, by its words.
fn leaves(command: &Command, path: &[String], found: &mut Vec<(String, Command)>) {
    let below: Vec<&Command> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
    // `dev` runs by itself, too.
    if below.is_empty() || path == ["dev"] {
        found.push((path.join(" "), command.clone()));
    }
    for c in below {
        leaves(c, &[path, &[c.get_name().to_owned()]].concat(), found);
    }
}

fn all() -> Vec<(String, Command)> {
    let mut found = Vec::new();
    leaves(&Cli::command(), &[], &mut found);
    found
}

fn help_of(command: &Command) -> String {
    command.get_after_help().map(ToString::to_string).unwrap_or_default()
}

/// The command lines of a help text: what stands before a remark (three blanks), a pipe, a redirection or `&&`.
fn examples(help: &str) -> Vec<Vec<String>> {
    let joined = help.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).map(|l| l.split("   ").next().unwrap_or(l));
    let commands = lines.flat_map(|l| l.split(" && ")).map(|l| l.split([';', '|', '>']).next().unwrap_or(l).trim());
    commands.filter(|l| l.starts_with("evenkeel ")).map(words).collect()
}

/// Words as a shell has them, as far as the examples need it.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().expect("one to begin with").push(c),
        }
    }
    words.retain(|w| !w.is_empty());
    words
}

#[test]
fn every_command_has_an_example_of_itself() {
    let commands = all();
    assert!(commands.len() > 50, "{}", commands.len());
    let without: Vec<&str> = commands
        .iter()
        .filter(|(path, c)| {
            let own: Vec<&str> = path.split(' ').collect();
            !examples(&help_of(c))
                .iter()
                .any(|e| e[1..].starts_with(&own.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()))
        })
        .map(|(path, _)| path.as_str())
        .collect();
    assert!(without.is_empty(), "no example: {without:?}");
}

#[test]
fn every_example_is_a_command_line_that_exists() {
    let mut helps: Vec<String> = all().iter().map(|(_, c)| help_of(c)).collect();
    helps.push(help_of(&Cli::command()));
    for example in helps.iter().flat_map(|h| examples(h)) {
        if let Err(e) = Cli::try_parse_from(&example) {
            panic!("{}: {e}", example.join(" "));
        }
    }
}

#[test]
fn every_argument_says_what_it_is() {
    for (path, command) in all() {
        for arg in
            command.get_arguments().filter(|a| !a.is_hide_set() && a.get_id() != "help" && a.get_id() != "version")
        {
            assert!(arg.get_help().is_some(), "{path}: {} has no help", arg.get_id());
        }
    }
}
