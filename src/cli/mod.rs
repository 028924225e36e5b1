//! The command line: what a user types and what is printed in answer.
//!
//! It may use every room below it through their public items, and it owns the words, tables and
//! progress bars of the terminal. It must not know how anything works inside.

pub mod backend;
pub mod bench;
mod check;
mod flags;
mod serve;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::{check::CheckArgs, serve::ServeArgs};

/// An inference server that speaks Triton: same model repository, configuration, protocols and
/// flags. Without a subcommand it serves.
#[derive(Debug, Parser)]
#[command(name = "nereid", version, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve model repositories (the default)
    Serve(Box<ServeArgs>),
    /// Validate model repositories without serving them
    Check(CheckArgs),
    /// Put a server under load and measure it
    Bench(Box<bench::BenchArgs>),
    /// Install and list back ends
    #[command(subcommand)]
    Backend(backend::Command),
}

/// Does what the process's arguments say.
pub fn run() -> ExitCode {
    let CommandLine { command, serve } = CommandLine::parse();
    match command {
        None => serve::run(serve),
        Some(Command::Serve(args)) => serve::run(*args),
        Some(Command::Check(args)) => check::run(&args),
        Some(Command::Bench(args)) => report(bench::run(*args)),
        Some(Command::Backend(command)) => report(command.run()),
    }
}

fn report<E: std::fmt::Display>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
