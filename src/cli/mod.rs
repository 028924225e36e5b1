//! The command line: what a user types and what is printed in answer.
//!
//! It may use every room below it through their public items, and it owns the words, tables and
//! progress bars of the terminal. It must not know how anything works inside.

pub mod backend;
pub mod bench;
mod check;
mod flags;
mod headings;
mod serve;
mod table;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use self::{check::CheckArgs, serve::ServeArgs};

/// An inference server that speaks Triton: same model repository, configuration, protocols and
/// flags. Without a subcommand it serves.
#[derive(Debug, Parser)]
// As in tritonserver, the last of several values of a flag counts.
#[command(
    name = "nereid",
    version,
    args_conflicts_with_subcommands = true,
    args_override_self = true
)]
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
    /// Put a server under load and measure it; `bench gpu` measures this machine's devices
    Bench(bench::BenchLine),
    /// Install and list back ends
    #[command(subcommand)]
    Backend(backend::Command),
}

/// Does what the process's arguments say.
pub fn run() -> ExitCode {
    let read = CommandLine::from_arg_matches(&command().get_matches());
    let CommandLine { command, serve } = read.unwrap_or_else(|error| error.exit());
    match command {
        None => serve::run(serve),
        Some(Command::Serve(args)) => serve::run(*args),
        Some(Command::Check(args)) => check::run(&args),
        Some(Command::Bench(bench::BenchLine::Server(args))) => report(bench::run(*args)),
        Some(Command::Bench(bench::BenchLine::Gpu(args))) => report(bench::gpu::run(&args)),
        Some(Command::Backend(command)) => report(command.run()),
    }
}

/// All that the command line may hold.
pub fn command() -> clap::Command {
    headings::grouped(CommandLine::command()).mut_subcommand("serve", headings::grouped)
}

/// The names of tritonserver's flags that are taken without effect so far.
pub fn flags_without_effect() -> impl Iterator<Item = &'static str> {
    serve::accepted_names()
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
