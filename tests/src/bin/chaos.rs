//! `cargo xtask chaos`: see [`lb_tests::chaos`].

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    lb_tests::chaos::run(&lb_tests::chaos::Arguments::parse())
}
