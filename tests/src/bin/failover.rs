//! `cargo xtask failover`: see [`lb_tests::failover`].

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    lb_tests::failover::run(&lb_tests::failover::Arguments::parse())
}
