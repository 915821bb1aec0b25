//! `cargo xtask bench`: see [`lb_tests::bench`].

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match lb_tests::bench::run(&lb_tests::bench::Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
