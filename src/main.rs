//! The program `nereid`; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nereid::cli::run()
}
