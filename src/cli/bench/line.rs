use clap::{ArgMatches, Args, Command, FromArgMatches};

use super::{BenchArgs, gpu::GpuArgs};

/// What `nereid bench` is asked to measure: a server, or with the word `gpu` this machine's devices.
#[derive(Clone, Debug)]
pub enum BenchLine {
    /// A server under load.
    Server(Box<BenchArgs>),
    /// What devices do, and how well they overlap copies with execution.
    Gpu(Box<GpuArgs>),
}

impl FromArgMatches for BenchLine {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        match matches.subcommand() {
            Some((GPU, matches)) => {
                GpuArgs::from_arg_matches(matches).map(|args| Self::Gpu(Box::new(args)))
            }
            _ => BenchArgs::from_arg_matches(matches).map(|args| Self::Server(Box::new(args))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for BenchLine {
    fn augment_args(command: Command) -> Command {
        BenchArgs::augment_args(command)
            .subcommand(GpuArgs::augment_args(Command::new(GPU)))
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

const GPU: &str = "gpu";
