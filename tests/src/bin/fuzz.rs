//! `cargo xtask fuzz`: see [`lb_tests::fuzz`].

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match lb_tests::fuzz::run(&lb_tests::fuzz::Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
