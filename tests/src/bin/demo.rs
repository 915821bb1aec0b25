//! `cargo xtask demo`: see [`lb_tests::demo`].

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    lb_tests::demo::run(&lb_tests::demo::Arguments::parse())
}
