//! The command line `lbctl`: a client of the API, and on backends the backend kit. `args` is what a person may type, `commands`
//! asks `lbd`, `drain` waits, `kit` is for a backend's host, `tables` and `report` say the answer in text; with `--output json` it is the API's answer as it is.
//!
//! Exit codes: 0 done, 1 refused or failed, 2 wrong usage.

mod announce;
mod args;
mod commands;
mod drain;
mod explain;
mod file;
mod kit;
mod report;
mod tables;
mod trace;

use args::{Cli, Output};
use clap::Parser;
use report::Failure;
use std::{
    io::{self, ErrorKind, Write},
    process::ExitCode,
};

/// Runs `lbctl` on the arguments of this process.
pub fn main() -> ExitCode {
    // Prints and exits by itself on wrong usage and for --help.
    let cli = Cli::parse();
    let output = cli.output;
    match answer(cli).and_then(|text| print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = match output {
                Output::Table => failure.to_string(),
                Output::Json => failure.json(),
            };
            // Nothing is left to be done if even that cannot be said.
            let _ = writeln!(io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}

/// What goes to standard output.
fn answer(cli: Cli) -> Result<String, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::local(format!("cannot start: {error}")))?;
    runtime.block_on(commands::run(cli.command, &cli.socket, cli.output))
}

/// A reader that has gone away, such as `head`, has what it wanted.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::local(format!(
            "cannot write to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}
